"""The Docker sandbox: one hardened container a step, through the engine's API."""

from __future__ import annotations

import functools
import os
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executor.docker_attached import Attached
from executor.docker_container import configuration, giving_back
from executor.docker_host import DEFAULT_HOST, DockerHost
from executor.docker_run import ContainerRun
from executor.docker_warm import WarmContainers
from executor.inside import ROOT
from executor.probing import probe
from executor.sandbox import NO_OBSERVERS, OUT, Command, Ending, Observers
from executor.toolchain import Installation
from executor.warm_bounds import WarmBounds
from schemas.errors import ToolchainMissing
from schemas.step_run import Isolation, Limits

if TYPE_CHECKING:
    import docker

_NO_GPU = re.compile(r"device driver|nvidia|\bCDI\b", re.IGNORECASE)
"""What the engine or NVIDIA's hook says when there is no runtime for GPUs, no driver, or not the GPU asked for."""


class DockerSandbox:
    """Runs programs in containers of an engine on this machine, which shows them this machine's folders.

    What names a toolchain runs in a container that waits with its imports done, where one does and holds as well.
    """

    name = "docker"

    def __init__(
        self,
        host: str = DEFAULT_HOST,
        image: str = "",
        runtime: str = "",
        gpus: tuple[str, ...] = (),
        warm: WarmBounds | None = None,
    ) -> None:
        self._host = DockerHost(host, image, runtime, gpus)
        self._warm = WarmContainers(self._host, warm, lambda: self._probed) if warm and warm.parents else None

    def root(self, workspace: Path) -> Path:
        """Return where programs inside see the workspace."""
        return ROOT

    def place(self, name: str, source: Path) -> str:
        """Return the path below the workspace that the input is mounted at."""
        return f"in/{name}"

    def carried(self, toolchain: str) -> tuple[Path, Installation] | None:
        """Return the interpreter that the image has for ``toolchain``."""
        return self._host.engine.image.toolchains.get(toolchain)

    def isolation(self, limits: Limits) -> Isolation:
        """Return what is really enforced; probed once per process, whatever the limits."""
        return self._probed

    def prepare(self, like: Command) -> None:
        """Have a container wait for a step like this."""
        if self._warm is not None and like.warm is not None:
            self._warm.prepare(like)

    def execute(self, command: Command, observers: Observers = NO_OBSERVERS) -> Ending:
        """Run ``command`` to its end; see the protocol."""
        began = time.monotonic()
        out = command.workspace / OUT
        out.mkdir(exist_ok=True)
        self._host.open_out(out)
        engine = self._host.engine
        ending = None
        is_alone = command.timed or command.beside or command.gpus
        if self._warm is not None and command.warm is not None and not is_alone:
            ending = self._warm.execute(command, observers, began)
        if ending is not None and os.geteuid() == 0:
            return ending
        with self._host.client() as client:
            if ending is None:
                ending = self._run(client, configuration(engine, command), command, observers)
            if os.geteuid() != 0:
                # What the step made belongs to a user of the container; only root can change that, in another one.
                self._run(client, giving_back(engine, command), command, NO_OBSERVERS)
            return ending

    @property
    def starts_warm(self) -> bool:
        """Whether steps are to start warm; :meth:`try_warm` tells whether they do."""
        return self._warm is not None

    def try_warm(self, toolchain: str, interpreter: Path, environment: Mapping[str, str]) -> float | str:
        """Return the seconds that an empty step of ``toolchain`` took which started warm, or why it starts cold."""
        if self._warm is None:
            return "the settings allow no waiting container"
        return self._warm.attempt(toolchain, interpreter, environment)

    def await_warm(self, like: Command) -> None:
        """Wait until a container waits for a step like this, with its imports done. Raises WarmFailed."""
        assert self._warm is not None
        self._warm.await_idle(like)

    def idle(self) -> dict[str, int]:
        """Return the toolchains whose steps start warm now, with the memory that is held for it."""
        return self._warm.pool.idle() if self._warm is not None else {}

    def close(self) -> None:
        """Remove the containers that wait; steps go on, and more containers wait as soon as a step asks."""
        if self._warm is not None:
            self._warm.pool.close()

    def _run(
        self, client: docker.APIClient, document: dict[str, Any], command: Command, observers: Observers
    ) -> Ending:
        from docker.errors import APIError

        container = Attached(client, document)
        try:
            began = time.monotonic()
            container.start()
            run = ContainerRun(container, out=command.workspace / OUT, limits=command.limits, observers=observers)
            return run.follow(began)
        except APIError as error:
            if command.gpus and _NO_GPU.search(str(error.explanation)):
                raise ToolchainMissing(
                    f"The Docker engine gives no GPU to the step: {str(error.explanation).strip()[:300]}.",
                    hint="Install the NVIDIA driver and the NVIDIA Container Toolkit, run as root: nvidia-ctk runtime "
                    "configure --runtime=docker, and start the engine again.",
                ) from error
            raise
        finally:
            self._host.close(container)

    @functools.cached_property
    def _probed(self) -> Isolation:
        engine = self._host.engine
        interpreter = next(iter(sorted(engine.image.interpreters)), Path(sys.executable))
        isolation = probe(self, interpreter, self._host.bounds)
        return isolation.model_copy(update={"image": engine.image.id, "runtime": engine.runtime})
