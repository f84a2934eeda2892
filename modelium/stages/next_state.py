"""Next: what a stage decided."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from schemas.errors import ErrorDocument
from schemas.job import JobState


@dataclass(frozen=True)
class Next:
    """The state a stage leads to, why, and the documents to keep with it."""

    state: JobState
    reason: str | None = None
    error: ErrorDocument | None = None
    keep: dict[str, Any] = field(default_factory=dict)
