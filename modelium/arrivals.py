"""What arrives is recorded first: Event, Artifact, Job and outbox row in one transaction."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import uuid4

from sqlalchemy import select

from modelium import db
from schemas.artifact import Artifact
from schemas.errors import ErrorDocument, ModeliumError
from schemas.event import Event
from schemas.job import ENDS, JobState, job_key
from schemas.sidecar import Sidecar
from schemas.target import TargetProfile


@dataclass(frozen=True)
class Arrived:
    """What a recorded arrival led to; ``new`` is False when the same drop had made this job before."""

    job_id: str
    new: bool


def record(
    database: db.Database,
    event: Event,
    artifact: Artifact,
    *,
    label: str,
    target: TargetProfile,
    sidecar: Sidecar | None = None,
    sidecar_artifact: Artifact | None = None,
    error: ErrorDocument | None = None,
) -> Arrived:
    """Write one arrival and the job it makes.

    Args:
        label: The name the deployment asks for, a DNS label.
        error: What is wrong with the drop or its sidecar; the job then ends at once, with the reason.

    The same uri, content, sidecar and target is the same job, however often it arrives.
    """
    at = db.now()
    key = job_key(event.uri, artifact.sha256, sidecar_artifact.sha256 if sidecar_artifact else None, target)
    job_id = uuid4().hex
    with database.write() as connection:
        db.insert_ignore(connection, db.events, event.model_dump())
        for stored in (artifact, sidecar_artifact):
            if stored is not None:
                db.keep_artifact(connection, stored)
        event_id = connection.execute(
            select(db.events.c.id).where(db.events.c.idempotency_key == event.idempotency_key)
        ).scalar_one()
        values = {
            "id": job_id,
            "key": key,
            "uri": event.uri,
            "label": label,
            "event_id": event_id,
            "artifact_sha256": artifact.sha256,
            "sidecar_sha256": sidecar_artifact.sha256 if sidecar_artifact else None,
            # Without what nobody named: whether a person named the runtime decides where a language model goes.
            "sidecar": sidecar.model_dump(mode="json", exclude_unset=True) if sidecar else None,
            "target": target.model_dump(mode="json", exclude_unset=True),
            "state": JobState.RECEIVED.value,
            "attempt": 1,
            "created_at": at,
            "updated_at": at,
        }
        if not db.insert_ignore(connection, db.jobs, values):
            existing = connection.execute(select(db.jobs.c.id).where(db.jobs.c.key == key)).scalar_one()
            return Arrived(existing, new=False)
        note = {"job_id": job_id, "at": at, "attempt": 1}
        connection.execute(db.transitions.insert().values(**note, before=None, after=JobState.RECEIVED.value))
        if error is None:
            connection.execute(db.outbox.insert().values(job_id=job_id, stage="analyze", created_at=at))
        else:
            end = end_state(error)
            connection.execute(
                db.jobs.update()
                .where(db.jobs.c.id == job_id)
                .values(state=end.value, reason=error.message, error=error.model_dump(mode="json"))
            )
            before = JobState.RECEIVED.value
            connection.execute(
                db.transitions.insert().values(**note, before=before, after=end.value, reason=error.message)
            )
    return Arrived(job_id, new=True)


def end_state(error: ErrorDocument | ModeliumError) -> JobState:
    """Return the end that an error leads to."""
    ends = {
        "quarantined": JobState.QUARANTINED,
        "needs_input": JobState.NEEDS_INPUT,
        "invalid_document": JobState.NEEDS_INPUT,  # only a person's sidecar reaches a job as one
        "cancelled": JobState.CANCELLED,
    }
    state = ends.get(error.code, JobState.FAILED)
    assert state in ENDS
    return state
