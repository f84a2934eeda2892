"""Job: one artifact towards one target; its state, its history and the legal changes between states."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import Field

from schemas.document import Document
from schemas.errors import ErrorDocument
from schemas.target import TargetProfile


class JobState(StrEnum):
    """Where a job is. The last six are its ends."""

    RECEIVED = "received"
    ANALYZING = "analyzing"
    PLANNING = "planning"
    EXECUTING = "executing"
    MEASURING = "measuring"
    DEPLOYING = "deploying"
    DEPLOYED = "deployed"
    UNCHANGED = "unchanged"
    NEEDS_INPUT = "needs_input"
    FAILED = "failed"
    QUARANTINED = "quarantined"
    CANCELLED = "cancelled"


ENDS = frozenset(
    {
        JobState.DEPLOYED,
        JobState.UNCHANGED,
        JobState.NEEDS_INPUT,
        JobState.FAILED,
        JobState.QUARANTINED,
        JobState.CANCELLED,
    }
)
_ANY_TIME = frozenset({JobState.FAILED, JobState.CANCELLED, JobState.NEEDS_INPUT})

LEGAL_CHANGES: dict[JobState, frozenset[JobState]] = {
    JobState.RECEIVED: frozenset({JobState.ANALYZING}) | _ANY_TIME,
    JobState.ANALYZING: frozenset({JobState.PLANNING, JobState.QUARANTINED}) | _ANY_TIME,
    # Straight to deploying: a model that a server of its own serves as it is.
    JobState.PLANNING: frozenset({JobState.EXECUTING, JobState.DEPLOYING}) | _ANY_TIME,
    JobState.EXECUTING: frozenset({JobState.MEASURING, JobState.QUARANTINED}) | _ANY_TIME,
    JobState.MEASURING: frozenset({JobState.DEPLOYING, JobState.UNCHANGED}) | _ANY_TIME,
    JobState.DEPLOYING: frozenset({JobState.DEPLOYED, JobState.UNCHANGED}) | _ANY_TIME,
    # A retry is a new attempt at the same job.
    JobState.NEEDS_INPUT: frozenset({JobState.RECEIVED}),
    JobState.FAILED: frozenset({JobState.RECEIVED}),
    JobState.QUARANTINED: frozenset({JobState.RECEIVED}),
    JobState.CANCELLED: frozenset({JobState.RECEIVED}),
    JobState.DEPLOYED: frozenset({JobState.RECEIVED}),
    JobState.UNCHANGED: frozenset({JobState.RECEIVED}),
}


def is_legal(before: JobState, after: JobState) -> bool:
    """Whether a job may go from ``before`` to ``after``."""
    return after in LEGAL_CHANGES[before]


class Transition(Document):
    """One change of state, as it is kept in the history."""

    at: datetime
    before: JobState | None
    after: JobState
    attempt: int
    reason: str | None = None


class Job(Document):
    """One artifact towards one target."""

    schema_version: Literal[1] = 1
    id: str
    key: str = Field(description="See job_key(); the same drop twice is the same job")
    uri: str
    name: str | None = Field(default=None, description="The deployment's name, once it is claimed")
    event_id: str
    artifact_sha256: str
    sidecar_sha256: str | None = None
    target: TargetProfile
    state: JobState
    attempt: int = Field(default=1, ge=1)
    reason: str | None = Field(default=None, description="One sentence for a person, or None")
    error: ErrorDocument | None = None
    created_at: datetime
    updated_at: datetime


def job_key(uri: str, artifact_sha256: str, sidecar_sha256: str | None, target: TargetProfile) -> str:
    """Return the identity of a job: sha256 over uri, content, sidecar and target."""
    parts = [uri, artifact_sha256, sidecar_sha256 or "", target.model_dump(mode="json")]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
