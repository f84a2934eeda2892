"""The Docker sandbox: one hardened container a step, through the engine's API."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executor.cgroup import start_time
from executor.docker_container import OWNER_LABEL, Engine, configuration, giving_back, pid_namespace
from executor.docker_image import find_image
from executor.docker_run import ContainerRun
from executor.inside import ROOT
from executor.probing import Bounds, probe
from executor.sandbox import NO_OBSERVERS, OUT, SANDBOX_UID, Command, Ending, Observers
from executor.toolchain import Installation
from schemas.errors import SandboxUnavailable, ToolchainMissing
from schemas.step_run import Isolation, Limits

if TYPE_CHECKING:
    import docker

log = logging.getLogger(__name__)
DEFAULT_HOST = "unix:///var/run/docker.sock"
_API_TIMEOUT_S = 60
_FORGOTTEN_S = 24 * 3600
_NO_GPU = re.compile(r"device driver|nvidia|\bCDI\b", re.IGNORECASE)
"""What the engine or NVIDIA's hook says when there is no runtime for GPUs, no driver, or not the GPU asked for."""


class DockerSandbox:
    """Runs programs in containers of an engine on this machine, which shows them this machine's folders."""

    name = "docker"

    def __init__(
        self, host: str = DEFAULT_HOST, image: str = "", runtime: str = "", gpus: tuple[str, ...] = ()
    ) -> None:
        self._gpus = gpus
        self._host, self._image_name, self._runtime = host or DEFAULT_HOST, image, runtime
        if not self._host.startswith("unix://"):
            raise SandboxUnavailable(
                f"The Docker engine {self._host} is not on this machine, and steps work in folders of this one.",
                hint="Set MODELIUM_DOCKER_HOST to unix:///path/of/docker.sock.",
            )
        self._abandoned: list[str] = []

    def root(self, workspace: Path) -> Path:
        """Return where programs inside see the workspace."""
        return ROOT

    def place(self, name: str, source: Path) -> str:
        """Return the path below the workspace that the input is mounted at."""
        return f"in/{name}"

    def carried(self, toolchain: str) -> tuple[Path, Installation] | None:
        """Return the interpreter that the image has for ``toolchain``."""
        return self._engine.image.toolchains.get(toolchain)

    def isolation(self, limits: Limits) -> Isolation:
        """Return what is really enforced; probed once per process, whatever the limits."""
        return self._probed

    def prepare(self, toolchain: str, interpreter: Path, environment: Mapping[str, str]) -> None:
        """Do nothing: every program is started anew."""

    def execute(self, command: Command, observers: Observers = NO_OBSERVERS) -> Ending:
        """Run ``command`` to its end; see the protocol."""
        out = command.workspace / OUT
        out.mkdir(exist_ok=True)
        engine = self._engine
        if os.geteuid() == 0 and not engine.maps_users:
            os.chown(out, SANDBOX_UID, SANDBOX_UID)
        else:
            out.chmod(0o777)  # the workspace above it is closed to others
        with self._client(engine.api) as client:
            self._remove_abandoned(client)
            ending = self._run(client, configuration(engine, command), command, observers)
            if os.geteuid() != 0:
                # What the step made belongs to a user of the container; only root can change that, in another one.
                self._run(client, giving_back(engine, command), command, NO_OBSERVERS)
            return ending

    def _run(
        self, client: docker.APIClient, document: dict[str, Any], command: Command, observers: Observers
    ) -> Ending:
        container = client.create_container_from_config(document)["Id"]
        run = ContainerRun(client, container, out=command.workspace / OUT, limits=command.limits, observers=observers)
        from docker.errors import APIError

        try:
            return run.execute()
        except APIError as error:
            if command.gpus and _NO_GPU.search(str(error.explanation)):
                raise ToolchainMissing(
                    f"The Docker engine gives no GPU to the step: {str(error.explanation).strip()[:300]}.",
                    hint="Install the NVIDIA driver and the NVIDIA Container Toolkit, run as root: nvidia-ctk runtime "
                    "configure --runtime=docker, and start the engine again.",
                ) from error
            raise
        finally:
            if not run.close():
                self._abandoned.append(container)

    def _remove_abandoned(self, client: docker.APIClient) -> None:
        """Remove what could not be removed when the engine went away; it is back now."""
        for container in list(self._abandoned):
            _remove(client, container)
            with contextlib.suppress(ValueError):  # another thread was quicker
                self._abandoned.remove(container)

    @functools.cached_property
    def _engine(self) -> Engine:
        with self._client("auto") as client:
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
                runtime=self._runtime,
                cpus=int(info["NCPU"]),
                api=client.api_version,
                rootless="name=rootless" in security,
                maps_users="name=rootless" in security or "name=userns" in security,
                gpus=self._gpus,
            )

    @functools.cached_property
    def _probed(self) -> Isolation:
        engine = self._engine
        with self._client(engine.api) as client:
            info = client.info()
        interpreter = next(iter(sorted(engine.image.interpreters)), Path(sys.executable))
        isolation = probe(self, interpreter, _bounds(info))
        return isolation.model_copy(
            update={"image": engine.image.id, "runtime": engine.runtime or info["DefaultRuntime"]}
        )

    @contextlib.contextmanager
    def _client(self, api: str) -> Iterator[docker.APIClient]:
        try:
            import docker
            from docker.errors import DockerException
            from requests import RequestException
        except ModuleNotFoundError:
            raise SandboxUnavailable(
                "The Python package docker is missing.", hint="Run: pip install 'modelium[docker]'"
            ) from None
        try:
            client = docker.APIClient(self._host, version=api, timeout=_API_TIMEOUT_S)
            try:
                yield client
            finally:
                client.close()
        except (DockerException, RequestException) as error:
            raise SandboxUnavailable(
                f"The Docker engine at {self._host} does not do what it is asked: {error}.",
                hint="Is it running, and may this user open its socket? Another is named by MODELIUM_DOCKER_HOST.",
            ) from error


def _bounds(info: dict[str, Any]) -> Bounds:
    label = f"cgroup-v{info.get('CgroupVersion') or 1}"
    notes = () if info.get("SwapLimit") else ("The engine cannot bound swap: a step may use more than its memory.",)
    return Bounds(
        memory=label if info.get("MemoryLimit") else None,
        processes=label if info.get("PidsLimit") else None,
        cpu=label if info.get("CpuCfsQuota") else None,
        notes=notes,
    )


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
