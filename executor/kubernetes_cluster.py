"""The few requests that a worker makes of a Kubernetes API server, through the official client."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from executor.kubernetes_job import CONTAINER, LABELS, NAME_LABEL, Manifest
from schemas.errors import SandboxUnavailable

_CONNECT_S, _ANSWER_S, _SILENCE_S = 5, 20, 60
_CHUNK_BYTES = 1 << 16
_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


class Away(Exception):
    """The API server did not answer, or only that it can't now; the same request may succeed later."""


@dataclass(frozen=True)
class Cluster:
    """One namespace of a cluster. Every method raises Away, or SandboxUnavailable when it is refused."""

    namespace: str
    client: Any
    """A ``kubernetes.client.ApiClient``."""

    @classmethod
    def connect(cls, namespace: str) -> Cluster:
        """Return the cluster that this process runs in, or that the usual kubeconfig names; asks nothing yet."""
        try:
            from kubernetes import client, config
        except ImportError as error:
            raise SandboxUnavailable(
                "The Python package kubernetes is missing.", hint="Run: pip install 'modelium[kubernetes]'"
            ) from error
        settings = client.Configuration()
        load = config.load_incluster_config if _TOKEN.exists() else config.load_kube_config
        try:
            load(client_configuration=settings)
        except config.ConfigException as error:
            raise SandboxUnavailable(
                f"No Kubernetes cluster is known here ({error}).",
                hint="Run the worker in the cluster with the service account modelium-worker, or set KUBECONFIG.",
            ) from error
        # Ours know what may be asked twice, and for how long.
        settings.retries = 0
        return cls(namespace, client.ApiClient(settings))

    @property
    def address(self) -> str:
        """The API server's URL."""
        return str(self.client.configuration.host)

    def create_job(self, body: Manifest) -> None:
        """Create a Job; one of that name is taken for the answer to the same request, which was lost."""
        from kubernetes import client

        self._ask(client.BatchV1Api(self.client).create_namespaced_job, body=body, allowed=409)

    def delete_job(self, name: str) -> None:
        """Ask for the end of a Job with its pods; does not wait for it."""
        from kubernetes import client

        delete = client.BatchV1Api(self.client).delete_namespaced_job
        self._ask(delete, name=name, propagation_policy="Foreground", allowed=404)

    def jobs(self, name: str | None = None) -> list[Manifest]:
        """Return the Jobs of steps, or that of one run."""
        from kubernetes import client

        return self._list(client.BatchV1Api(self.client).list_namespaced_job, label_selector=_labels(name))

    def pods(self, name: str) -> list[Manifest]:
        """Return the pods of a run, the newest last."""
        from kubernetes import client

        found = self._list(client.CoreV1Api(self.client).list_namespaced_pod, label_selector=_labels(name))
        return sorted(found, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")))

    def events(self, *names: str) -> list[Manifest]:
        """Return what happened to the objects of these names, the newest last."""
        from kubernetes import client

        ask = client.CoreV1Api(self.client).list_namespaced_event
        found = [e for name in names for e in self._list(ask, field_selector=f"involvedObject.name={name}")]
        return sorted(found, key=lambda e: str(e.get("lastTimestamp") or e.get("eventTime") or ""))

    def network_policies(self) -> list[Manifest]:
        """Return the network policies of the namespace."""
        from kubernetes import client

        return self._list(client.NetworkingV1Api(self.client).list_namespaced_network_policy)

    def log(self, pod: str) -> Iterator[bytes]:
        """Yield the log of a pod from its beginning, as it is written, until its end or Away."""
        from kubernetes import client
        from urllib3.exceptions import HTTPError

        read = client.CoreV1Api(self.client).read_namespaced_pod_log
        limits = (_CONNECT_S, _SILENCE_S)
        response = self._send(read, name=pod, container=CONTAINER, follow=True, _request_timeout=limits, allowed=404)
        if response is None:
            return
        try:
            # Not stream(): it waits until a chunk is full where the server does not send chunks.
            while chunk := response.read1(_CHUNK_BYTES):
                yield chunk
        except (HTTPError, OSError) as error:
            raise Away(str(error)) from error
        finally:
            response.close()

    def _list(self, call: Callable[..., Any], **arguments: Any) -> list[Manifest]:
        items = self._ask(call, **arguments).get("items") or []
        return [item for item in items if isinstance(item, dict)]

    def _ask(self, call: Callable[..., Any], *, allowed: int = 0, **arguments: Any) -> Manifest:
        from urllib3.exceptions import HTTPError

        response = self._send(call, allowed=allowed, _request_timeout=(_CONNECT_S, _ANSWER_S), **arguments)
        try:
            answer = json.loads(response.data) if response is not None else {}
        except (HTTPError, OSError, ValueError) as error:
            raise Away(str(error)) from error
        return answer if isinstance(answer, dict) else {}

    def _send(self, call: Callable[..., Any], *, allowed: int = 0, **arguments: Any) -> Any:
        """Return the response, unread; None for the HTTP status ``allowed``."""
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        try:
            # As JSON, not as the client's classes: those refuse fields that are newer or older than they are.
            return call(namespace=self.namespace, _preload_content=False, **arguments)
        except ApiException as error:
            status = int(error.status or 0)
            if status == allowed:
                return None
            told = _message(error.body) or str(error.reason)
            if status in (0, 408, 429) or status >= 500 or (status == 400 and call.__name__.endswith("pod_log")):
                raise Away(f"{status} {told}") from None
            raise SandboxUnavailable(
                f"The cluster refuses what a worker has to ask ({status}: {told[:600]}).",
                hint="Have an administrator apply what `modelium kubernetes` prints, and run the worker as its service "
                "account.",
            ) from None
        except (HTTPError, OSError) as error:
            raise Away(str(error)) from error


def _labels(name: str | None) -> str:
    wanted = LABELS if name is None else {**LABELS, NAME_LABEL: name}
    return ",".join(f"{key}={value}" for key, value in wanted.items())


def _message(body: object) -> str:
    try:
        document = json.loads(body) if isinstance(body, str | bytes) else {}
    except ValueError:
        return ""
    return str(document.get("message", "")) if isinstance(document, dict) else ""
