"""No sandbox at all: what an operator gets who insists in the settings. It bounds accidents, not attackers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from executor.cgroup import Cgroup
from executor.gpus import gpu_devices
from executor.pipes import Pipes
from executor.sandbox import NO_OBSERVERS, OUT, PROGRESS_VARIABLE, Command, Ending, Observers
from executor.supervise import supervise
from schemas.step_run import Isolation, Limits

_OPEN_FILES = 4096


class UnisolatedSandbox:
    """Runs programs as this very user with resource limits only; says so on every run."""

    name = "none"

    def root(self, workspace: Path) -> Path:
        """Return the workspace itself: programs see the host's paths."""
        return workspace

    def place(self, name: str, source: Path) -> str:
        """Return the input's own path: there is nothing that could show it elsewhere but a link."""
        return str(source.absolute())

    def carried(self, toolchain: str) -> None:
        """Return None: programs use the host's toolchains."""

    def isolation(self, limits: Limits) -> Isolation:
        """Return that there is none."""
        return Isolation(
            backend=self.name,
            own_user=False,
            no_network=False,
            read_only_root=False,
            own_pids=False,
            seccomp=False,
            memory="rlimit",
            processes="none",
            cpu="rlimit",
            notes=("NOT ISOLATED: the operator allowed it. Use it only for models you would run by hand.",),
        )

    def prepare(self, like: Command) -> None:
        """Do nothing: every program is started anew."""

    def execute(self, command: Command, observers: Observers = NO_OBSERVERS) -> Ending:
        """Run ``command`` to its end; a process that detached itself may survive it."""
        if command.gpus:
            gpu_devices(command.gpus)
        out, home = (command.workspace / name for name in (OUT, "tmp"))
        for folder in (out, home):
            folder.mkdir(exist_ok=True)
        pipes, limits = Pipes(), command.limits
        try:
            argv = [*_launcher(limits), "/usr/bin/env", "-i", *_environment(command, home, pipes), *command.argv]
            return supervise(
                argv, pipes, cgroup=Cgroup("", {}), out=out, limits=limits, observers=observers, cwd=command.workspace
            )
        finally:
            pipes.close()


def _launcher(limits: Limits) -> Iterator[str]:
    if shutil.which("setpriv"):
        yield from ("setpriv", "--pdeathsig", "KILL", "--no-new-privs")
    if shutil.which("prlimit"):
        yield from ("prlimit", "--core=0", f"--nofile={_OPEN_FILES}", f"--fsize={limits.workspace_bytes}")


def _environment(command: Command, home: Path, pipes: Pipes) -> Iterator[str]:
    variables = {
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(Path(__file__).parent.parent),
        "TMPDIR": str(home),
        PROGRESS_VARIABLE: str(pipes.progress[1]),
        **command.environment,
    }
    for name, value in variables.items():
        yield f"{name}={value}"
