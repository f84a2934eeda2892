"""The bubblewrap sandbox: namespaces, a minimal read-only root, a seccomp allowlist, a cgroup where there is one."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from executor import bwrap_arguments as arguments
from executor.bwrap_arguments import as_root, group_bounds
from executor.cgroup import Cgroup
from executor.gpus import Shown, gpu_devices, library_folders
from executor.inside import PASSWD, ROOT, environment, shm_bytes, tmp_bytes
from executor.pipes import Pipes
from executor.probing import probe
from executor.sandbox import NO_OBSERVERS, OUT, SANDBOX_UID, Command, Ending, Observers
from executor.seccomp import program
from executor.supervise import supervise
from executor.warm_bounds import WarmBounds
from executor.warm_steps import WarmSteps
from schemas.step_run import Isolation, Limits


class BwrapSandbox:
    """Runs programs under bubblewrap; as root with a real uid of their own, as a user in a user namespace.

    What names a toolchain is forked from a warm parent where that works and holds as well. ``gpus`` are the numbers of
    those that programs may get which need one; none: all.
    """

    name = "bubblewrap"

    def __init__(self, executable: str, warm: WarmBounds | None = None, gpus: Sequence[str] = ()) -> None:
        self._executable, self._gpus = executable, gpus
        self._probing = threading.Lock()
        self._warm = WarmSteps(executable, warm) if warm is not None and warm.parents else None

    def root(self, workspace: Path) -> Path:
        """Return where programs inside see the workspace."""
        return ROOT

    def place(self, name: str, source: Path) -> str:
        """Return the path below the workspace that the input is mounted at."""
        return f"in/{name}"

    def carried(self, toolchain: str) -> None:
        """Return None: programs use the host's toolchains."""

    def isolation(self, limits: Limits) -> Isolation:
        """Return what is really enforced; probed once per process, whatever the limits."""
        return self._probed

    @property
    def _probed(self) -> Isolation:
        with self._probing:  # once, whichever thread asks first
            return self._found

    @functools.cached_property
    def _found(self) -> Isolation:
        return probe(self, Path(sys.executable), group_bounds())

    def prepare(self, like: Command) -> None:
        """Start the warm parent of steps like this, and find out what its children enforce as soon as it is there."""
        if self._warm is not None and like.warm is not None:
            self._warm.prepare(like, lambda: self._probed)

    def execute(self, command: Command, observers: Observers = NO_OBSERVERS) -> Ending:
        """Run ``command`` to its end; see the protocol."""
        devices = gpu_devices(command.gpus, self._gpus) if command.gpus else []
        out = command.workspace / OUT
        out.mkdir(exist_ok=True)
        if as_root():
            os.chown(out, SANDBOX_UID, SANDBOX_UID)
        began = time.monotonic()
        if self._warm is None or command.warm is None:
            return self._cold(command, devices, observers)
        with contextlib.nullcontext() if command.timed else self._warm.parents.awake():
            ending = None
            if not devices:
                ending = self._warm.execute(command, observers, began=began, cold=self._probed)
            return ending or self._cold(command, devices, observers)

    @property
    def starts_warm(self) -> bool:
        """Whether steps are to start warm; :meth:`try_warm` tells whether they do."""
        return self._warm is not None

    def try_warm(self, toolchain: str, interpreter: Path, environment: Mapping[str, str]) -> float | str:
        """Return the seconds that an empty step of ``toolchain`` took which started warm, or why it starts cold."""
        if self._warm is None:
            return "the settings allow no warm parent"
        return self._warm.attempt(toolchain, interpreter, environment, self._probed)

    def _cold(self, command: Command, devices: list[Shown], observers: Observers) -> Ending:
        cgroup = Cgroup.create(command.limits)
        pipes = Pipes()
        try:
            variables = environment(command, pipes.progress[1])
            argv = [
                *(self._executable, *self._namespaces(), *self._mounts(command, devices)),
                *(*arguments.set_variables(variables), "--seccomp", str(pipes.data(program(gpu=bool(devices))))),
                *("--info-fd", str(pipes.info[1]), "--ro-bind-data", str(pipes.data(PASSWD)), "/etc/passwd"),
                *("--remount-ro", "/", "--chdir", str(ROOT), "--"),
                *(*self._bounds(command, cgroup), *self._become(), *command.argv),
            ]
            out = command.workspace / OUT
            return supervise(argv, pipes, cgroup=cgroup, out=out, limits=command.limits, observers=observers)
        finally:
            pipes.close()
            cgroup.remove()

    def _namespaces(self) -> Iterator[str]:
        # The program gets a uid of its own from setpriv, which drops these capabilities with everything else.
        return arguments.namespaces(*(("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP") if as_root() else ()))

    def _mounts(self, command: Command, devices: list[Shown]) -> Iterator[str]:
        yield from arguments.system(tmp_bytes(command.limits), shm_bytes(command.limits), devices)
        yield from arguments.hidden_init()
        binds = arguments.installed((command.interpreter, *command.beside)) + arguments.workspace(command)
        if devices:
            binds += [("--ro-bind", folder, folder) for folder in library_folders()]
        yield from arguments.bound(binds)

    def _bounds(self, command: Command, cgroup: Cgroup) -> Iterator[str]:
        yield "/usr/bin/prlimit"
        for name, value in arguments.resource_limits(command.limits, cgroup, command.gpus).items():
            yield f"--{name}={value}"
        yield "--"

    def _become(self) -> tuple[str, ...]:
        if not as_root():
            return ()
        uid = str(SANDBOX_UID)
        return (
            *("/usr/bin/setpriv", "--reuid", uid, "--regid", uid, "--clear-groups"),
            *("--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", "--"),
        )
