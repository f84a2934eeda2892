"""What every sandbox takes and gives, whatever enforces it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from executor.toolchain import Installation
from schemas.errors import ModeliumError
from schemas.step_run import Isolation, Limits

SANDBOX_UID = 65534
OUT = "out"
PROGRESS_VARIABLE = "MODELIUM_PROGRESS_FD"
PROGRESS_MARK_VARIABLE = "MODELIUM_PROGRESS_MARK"
"""Set where no descriptor can be inherited: progress lines then go to the log, each beginning with this mark."""


@dataclass(frozen=True)
class Command:
    """One program to run in a sandbox, whose working folder shows ``step.json``, ``in/`` and ``out/``.

    ``argv`` is as seen inside. ``workspace`` is the host folder with ``step.json`` and ``out/``; ``inputs`` are host
    files or folders that appear read-only below ``in/``. ``interpreter`` is the Python whose installation is shown,
    and ``beside`` are others that the program starts. ``warm`` names the toolchain: a process that has imported it may
    run ``argv``, Python's ``-m`` or ``-c``, instead of a new one. ``gpus`` is how many GPUs it is shown, for which it
    always is a new process.
    """

    argv: tuple[str, ...]
    workspace: Path
    interpreter: Path
    limits: Limits
    inputs: Mapping[str, Path] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    beside: tuple[Path, ...] = ()
    warm: str | None = None
    hurried: bool = False
    """Rather start cold than wait until a warm parent has its imports done: the program needs few of them."""
    timed: bool = False
    """Let nothing that waits for later steps work beside it."""
    gpus: int = 0


@dataclass(frozen=True)
class Observers:
    """Who hears of a running sandbox. All are called in the thread that waits for it, and must be quick."""

    on_log: Callable[[str], None] | None = None
    on_progress: Callable[[float, str], None] | None = None
    should_stop: Callable[[], bool] | None = None


NO_OBSERVERS = Observers()


@dataclass(frozen=True)
class Ending:
    """How a sandbox ended. Nothing of it runs any more.

    ``exit_code`` is the program's, 128 + n when signal n ended it. ``error`` is set when the sandbox stopped it or
    the kernel did for its sake (LimitExceeded, StorageFull, Cancelled); whatever it wrote is void then. ``warm`` is
    what was enforced when it ran in a process that had its imports done, None when it started anew.
    """

    exit_code: int
    error: ModeliumError | None
    log: str
    wall_s: float
    cpu_s: float | None
    peak_memory_bytes: int | None
    warm: Isolation | None = None


class Sandbox(Protocol):
    """Runs one program at a time per call; calls may overlap."""

    name: str

    def root(self, workspace: Path) -> Path:
        """Return the path of ``workspace`` as programs inside see it."""

    def place(self, name: str, source: Path) -> str:
        """Return where programs inside see the input ``name``: below the workspace, or absolute."""

    def carried(self, toolchain: str) -> tuple[Path, Installation] | None:
        """Return the interpreter that the sandbox itself has for ``toolchain``, where it does not show the host's."""

    def isolation(self, limits: Limits) -> Isolation:
        """Return what is really enforced under ``limits``, found out by running it once in this process."""

    def prepare(self, like: Command) -> None:
        """Have ready, in a while, what steps like this start from. Does not wait for it."""

    def execute(self, command: Command, observers: Observers = NO_OBSERVERS) -> Ending:
        """Run ``command`` to its end and leave nothing behind but what it wrote to ``out/``.

        Raises ToolchainMissing when it needs a GPU and none can be shown to it.
        """
