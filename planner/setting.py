"""What every part of the rules reads: the model, the target, and what is installed."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any

from planner.shape_of_work import Work, work_of
from schemas.catalog import CATALOG
from schemas.descriptor import ModelDescriptor
from schemas.plan import Candidate, Step
from schemas.precision import Precision
from schemas.target import TargetProfile

DEFAULT_TOOLCHAINS: frozenset[str] = frozenset({"onnx", "torch", "sklearn"})
"""What the ordinary set-up installs."""


@dataclass(frozen=True)
class Setting:
    """The question that a plan answers."""

    descriptor: ModelDescriptor
    target: TargetProfile
    toolchains: Container[str]
    cpu_flags: frozenset[str]
    work: Work = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "work", work_of(self.descriptor))

    def allows(self, precision: Precision) -> bool:
        """Whether the target lets a candidate of that precision win."""
        return precision in self.target.precisions

    def chance(self, precision: Precision) -> str:
        """Return the sentence on whether a lossy candidate may win."""
        if self.allows(precision):
            return "It wins only if real samples show that the answers hold."
        allowed = " and ".join(each.value for each in self.target.precisions)
        return f"It is measured and shown, but cannot win: the target allows {allowed} only."


@dataclass
class Route:
    """Candidates of one backend, and the sentences that say what was left out and why."""

    candidates: list[Candidate] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def add(self, other: Route) -> None:
        """Append what another backend's rules found."""
        self.candidates += other.candidates
        self.left_out += other.left_out


def step(kind: str, options: dict[str, Any], reason: str, *fallbacks: Step) -> Step:
    """Return a step of ``kind`` in its usual toolchain."""
    toolchain = CATALOG[kind].toolchains[0]
    return Step(kind=kind, toolchain=toolchain, options=options, reason=reason[:500], fallbacks=fallbacks)
