"""The Docker engine of this machine: how it is reached, what it can do, and what is left in it."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from executor.cgroup import start_time
from executor.docker_attached import Attached
from executor.docker_container import OWNER_LABEL, Engine, pid_namespace
from executor.docker_image import find_image
from executor.probing import Bounds
from executor.sandbox import SANDBOX_UID
from schemas.errors import SandboxUnavailable

if TYPE_CHECKING:
    import docker

log = logging.getLogger(__name__)
DEFAULT_HOST = "unix:///var/run/docker.sock"
_API_TIMEOUT_S = 60
_FORGOTTEN_S = 24 * 3600


class DockerHost:
    """Connections to one engine, and what was found out about it once."""

    def __init__(self, host: str, image: str, runtime: str, gpus: tuple[str, ...] = ()) -> None:
        self._gpus = gpus
        self._host, self._image_name, self._runtime = host or DEFAULT_HOST, image, runtime
        if not self._host.startswith("unix://"):
            raise SandboxUnavailable(
                f"The Docker engine {self._host} is not on this machine, and steps work in folders of this one.",
                hint="Set MODELIUM_DOCKER_HOST to unix:///path/of/docker.sock.",
            )
        self._abandoned: list[str] = []

    @functools.cached_property
    def engine(self) -> Engine:
        """What it is and has. The first to ask removes what dead owners left in it."""
        with self.client("auto") as client:
            info = client.info()
            runtimes = sorted(info.get("Runtimes") or {})
            if self._runtime and self._runtime not in runtimes:
                raise SandboxUnavailable(
                    f"The Docker engine has no runtime {self._runtime}; it has {', '.join(runtimes)}.",
                    hint="Install it and name it in the engine's daemon.json, or unset MODELIUM_SANDBOX_RUNTIME.",
                )
            _sweep(client)
            image = find_image(client, self._image_name)
            security = ",".join(info.get("SecurityOptions") or ())
            return Engine(
                image=image,
                runtime=self._runtime or info["DefaultRuntime"],
                cpus=int(info["NCPU"]),
                api=client.api_version,
                rootless="name=rootless" in security,
                maps_users="name=rootless" in security or "name=userns" in security,
                gpus=self._gpus,
            )

    @functools.cached_property
    def bounds(self) -> Bounds:
        """What it says that it bounds."""
        with self.client(self.engine.api) as client:
            info = client.info()
        label = f"cgroup-v{info.get('CgroupVersion') or 1}"
        notes = () if info.get("SwapLimit") else ("The engine cannot bound swap: a step may use more than its memory.",)
        return Bounds(
            memory=label if info.get("MemoryLimit") else None,
            processes=label if info.get("PidsLimit") else None,
            cpu=label if info.get("CpuCfsQuota") else None,
            notes=notes,
        )

    @contextlib.contextmanager
    def client(self, api: str = "") -> Iterator[docker.APIClient]:
        """Connect for a while; what the engine refuses meanwhile is SandboxUnavailable."""
        with self.translated():
            client = self.connect(api)
            try:
                yield client
            finally:
                client.close()

    def connect(self, api: str = "") -> docker.APIClient:
        """Return a new connection, to be closed."""
        import docker

        return docker.APIClient(self._host, version=api or self.engine.api, timeout=_API_TIMEOUT_S)

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        """Raise SandboxUnavailable for whatever the engine, or the way to it, raises."""
        try:
            from docker.errors import DockerException
            from requests import RequestException
        except ModuleNotFoundError:
            raise SandboxUnavailable(
                "The Python package docker is missing.", hint="Run: pip install 'modelium[docker]'"
            ) from None
        try:
            yield
        except (DockerException, RequestException) as error:
            raise SandboxUnavailable(
                f"The Docker engine at {self._host} does not do what it is asked: {error}.",
                hint="Is it running, and may this user open its socket? Another is named by MODELIUM_DOCKER_HOST.",
            ) from error

    def open_out(self, out: Path) -> None:
        """Let the user of a container write to ``out``, whose folder is closed to others."""
        if os.geteuid() == 0 and not self.engine.maps_users:
            os.chown(out, SANDBOX_UID, SANDBOX_UID)
        else:
            out.chmod(0o777)

    def close(self, container: Attached) -> None:
        """End and remove a container; where the engine is away, as soon as another is removed. Once is enough."""
        if container.is_closed:
            return
        if not container.close():
            self._abandoned.append(container.id)
            return
        with contextlib.suppress(SandboxUnavailable), self.translated():
            for left in list(self._abandoned):
                _remove(container.client, left)
                with contextlib.suppress(ValueError):  # another thread was quicker
                    self._abandoned.remove(left)


def _sweep(client: docker.APIClient) -> None:
    """Remove containers whose owner is dead. One of another pid namespace is judged by its age alone."""
    here = pid_namespace()
    for container in client.containers(all=True, filters={"label": OWNER_LABEL}):
        pid, born, namespace = container["Labels"][OWNER_LABEL].split("-", 2)
        if namespace == here:
            dead = start_time(int(pid)) != born
        else:
            dead = container["State"] != "running" and time.time() - container["Created"] > _FORGOTTEN_S
        if dead:
            _remove(client, container["Id"])


def _remove(client: docker.APIClient, container: str) -> None:
    from docker.errors import APIError

    try:
        client.remove_container(container, force=True, v=True)
    except APIError as error:  # it is gone, or on its way; or it stays, which must not keep others from running
        log.log(logging.DEBUG if error.status_code in (404, 409) else logging.WARNING, "a container stays: %s", error)
