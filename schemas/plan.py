"""ConversionPlan: one or more candidates, each a short chain of steps with fallbacks."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from pydantic import Field

from schemas.descriptor import Format
from schemas.document import Document
from schemas.precision import Precision
from schemas.target import TargetProfile

ORIGINAL = "original"
"""The id of the contender that is the dropped model itself."""


class Step(Document):
    """One catalogued kind with typed options, and the toolchain it runs in.

    ``options`` satisfies the options model of ``kind`` in ``schemas/catalog.py``; the validator checks it and the
    child parses it again.
    """

    kind: str = Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)
    toolchain: str = Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)
    options: dict[str, Any] = Field(default_factory=dict)
    reason: str = Field(max_length=500, description="Why this step, one sentence")
    fallbacks: tuple[Step, ...] = Field(default=(), max_length=3, description="Tried in order when this step fails")


class Candidate(Document):
    """A chain of conversion steps; each step's output model is the next one's input. No steps: the original itself."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    format: Format
    precision: Precision
    steps: tuple[Step, ...] = Field(max_length=8)
    reason: str = Field(max_length=500, description="Why this candidate, one sentence")


class ConversionPlan(Document):
    """What will be tried for one artifact and one target. The proof is added by code, never here."""

    schema_version: Literal[1] = 1
    planner: str = Field(max_length=64, description="rules, qwen")
    reason: str = Field(max_length=1000)
    target: TargetProfile
    candidates: tuple[Candidate, ...] = Field(min_length=1, max_length=16)


class FindingLevel(StrEnum):
    """``error`` stops the plan, ``warning`` is kept and shown."""

    ERROR = "error"
    WARNING = "warning"


class PlanFinding(Document):
    """What the validator says of a plan; ``pointer`` is a JSON pointer into it."""

    level: FindingLevel
    code: str = Field(max_length=64)
    message: str = Field(max_length=1000)
    pointer: str = Field(default="", max_length=300)
