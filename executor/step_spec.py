"""What goes into one execution of a step and what comes out of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from executor.toolchain import Toolchain
from executor.workspace import Workspace
from schemas.step_io import StepRequest, StepResult
from schemas.step_run import Isolation, Limits, Usage


@dataclass(frozen=True)
class StepSpec:
    """One step to execute. ``inputs`` are host files or folders by input name.

    They are shown read-only, and readable for others must they be: the step runs as another user. What
    ``request.inputs`` and ``request.memory_bytes`` say is replaced by what really is.
    """

    request: StepRequest
    toolchain: Toolchain
    inputs: Mapping[str, Path] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    beside: tuple[Toolchain, ...] = ()
    """Toolchains whose interpreters the step starts beside its own."""


@dataclass
class StepOutput:
    """What a step gave. ``out`` and ``outputs`` exist until :meth:`close` or the end of the ``with`` block.

    ``outputs`` hold plain files and folders only, within the limits. When ``result.ok`` is False there are none.
    """

    result: StepResult
    out: Path
    outputs: dict[str, Path]
    usage: Usage
    isolation: Isolation
    log: str
    workspace: Workspace = field(repr=False)

    def close(self) -> None:
        """Remove the workspace with all outputs."""
        self.workspace.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
