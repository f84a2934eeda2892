"""Runs steps in containers that wait for them, where that was seen to hold as well as one made for the step does."""

from __future__ import annotations

import functools
import json
import logging
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from executor.docker_container import waiting
from executor.docker_host import DockerHost
from executor.docker_pool import ContainerPool, Kind
from executor.docker_waiting import WaitingContainer, shown
from executor.probing import probe
from executor.sandbox import NO_OBSERVERS, OUT, Command, Ending, Observers
from executor.warm_bounds import WarmBounds
from executor.warm_failed import WarmFailed
from schemas.errors import SandboxUnavailable
from schemas.step_run import Isolation, Limits

log = logging.getLogger(__name__)
_START_S = 90
_BARE = "bare"
"""A toolchain without libraries."""


class WarmContainers:
    """The warm half of the Docker sandbox. Calls may overlap."""

    name = "docker, warm"

    def __init__(self, host: DockerHost, bounds: WarmBounds, cold: Callable[[], Isolation]) -> None:
        """``cold`` tells what a container that is made for its step holds."""
        self._host, self._cold = host, cold
        self.pool = ContainerPool(bounds, self._make, self._check)
        self._checking = threading.Lock()
        self._isolation: Isolation | None = None
        self._complained: set[str] = set()

    def execute(self, command: Command, observers: Observers, began: float) -> Ending | None:
        """Run ``command`` in a container that waits for it, or return None: then start it cold."""
        try:
            with shown(command):
                kind = self._kind(command)
                container = self.pool.take(kind, idle=command.hurried)
                if container is None:
                    return None
                try:
                    return self._run(container, command, observers, began)
                finally:
                    self.pool.ended(kind)
        except WarmFailed as error:
            if (why := str(error)) not in self._complained:
                self._complained.add(why)
                log.warning("a step of %s starts cold: %s", command.warm, why)
            return None

    def prepare(self, like: Command) -> None:
        """Have a container wait for a step like this, in a while."""
        self.pool.prepare(self._kind(like))

    def await_idle(self, like: Command) -> None:
        """Wait until a container waits for a step like this, with its imports done. Raises WarmFailed."""
        self.pool.await_idle(self._kind(like))

    def attempt(self, toolchain: str, interpreter: Path, environment: Mapping[str, str]) -> float | str:
        """Return the seconds that an empty step took in a container that waited for it, or why none did."""
        with tempfile.TemporaryDirectory(prefix="modelium-probe-") as folder:
            argv = (str(interpreter), "-c", "pass")
            command = Command(argv, Path(folder), interpreter, Limits(), environment=environment, warm=toolchain)
            try:
                self._check()
                container = self._ready(command)
                ending = self._run(container, command, NO_OBSERVERS, time.monotonic())
            except (WarmFailed, SandboxUnavailable) as error:
                return str(error.args[0])
        if ending.exit_code == 0 and ending.error is None:
            return ending.wall_s
        return ending.log.strip()[-300:] or str(ending.error)

    def _kind(self, command: Command) -> Kind:
        document = waiting(self._host.engine, command, Path("/"))
        return Kind(json.dumps(document), command.workspace.parent, command)

    def _check(self) -> None:
        """See once in this process that a container that waited holds what another does."""
        with self._checking:
            if self._isolation is not None:
                return
            interpreter = next(iter(sorted(self._host.engine.image.interpreters)), Path(sys.executable))
            try:
                found = probe(_Probed(self), interpreter, self._host.bounds)
            except SandboxUnavailable as error:
                raise WarmFailed(str(error.args[0]), lasting=True) from None
            cold = self._cold()
            found = found.model_copy(
                update={"backend": cold.backend, "image": self._host.engine.image.id, "runtime": cold.runtime}
            )
            lacking = [name for name, value in found if value != getattr(cold, name)]
            if lacking:
                raise WarmFailed(f"a warm start does not enforce here: {', '.join(lacking)}", lasting=True)
            self._isolation = found

    def _make(self, kind: Kind) -> WaitingContainer:
        document = functools.partial(waiting, self._host.engine, kind.like)
        return WaitingContainer(self._host, document, kind.workspaces)

    def _ready(self, command: Command) -> WaitingContainer:
        """Return a container for ``command`` alone, which has imported all that it will."""
        container = self._make(Kind("", command.workspace, command))
        deadline = time.monotonic() + _START_S
        try:
            while not container.idle:
                container.listen(deadline - time.monotonic())
                if container.has_ended:
                    raise container.failure()
                if time.monotonic() > deadline:
                    raise WarmFailed(f"it was not ready after {_START_S} s")
        except BaseException:
            container.close()
            raise
        return container

    def _run(self, container: WaitingContainer, command: Command, observers: Observers, began: float) -> Ending:
        try:
            with self._host.translated():
                ending = container.run(command, observers, began)
                container.give_out(command.workspace)
        finally:
            container.close()
        return replace(ending, warm=self._isolation)


class _Probed:
    """A sandbox whose every program runs in a container that waited for it."""

    def __init__(self, containers: WarmContainers) -> None:
        self.name, self._containers = containers.name, containers

    def execute(self, command: Command) -> Ending:
        """Run ``command`` to its end."""
        (command.workspace / OUT).mkdir()
        command = replace(command, warm=_BARE)
        container = self._containers._ready(command)
        return self._containers._run(container, command, NO_OBSERVERS, time.monotonic())
