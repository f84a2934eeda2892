"""Jobs: claims, changes of state by compare-and-set, cancelling and retrying. The database is the truth.

A stage is claimed by an atomic update that takes a lease; a heartbeat keeps it; whoever loses the lease has lost the
job and everything it then writes is refused. A broker message is only a hint that there may be something to claim.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, case, delete, or_, select, update

from modelium import db
from schemas.document import Document
from schemas.errors import Conflict, ErrorDocument, NotFound
from schemas.job import ENDS, Job, JobState, Transition, is_legal
from schemas.sidecar import Sidecar
from schemas.target import TargetProfile

STAGES: tuple[str, ...] = ("analyze", "plan", "execute", "measure", "deploy")
STATE_OF_STAGE: dict[str, JobState] = {
    "analyze": JobState.ANALYZING,
    "plan": JobState.PLANNING,
    "execute": JobState.EXECUTING,
    "measure": JobState.MEASURING,
    "deploy": JobState.DEPLOYING,
}
STAGE_OF_STATE: dict[JobState, str] = {state: stage for stage, state in STATE_OF_STAGE.items()} | {
    JobState.RECEIVED: "analyze"
}
_ENDS = [state.value for state in ENDS]


class LeaseLost(Exception):
    """Another worker has the job now; stop and write nothing."""


class Interrupted(Exception):
    """This process is to end; give the job back undone."""


@dataclass(frozen=True)
class Claim:
    """A job whose stage this owner holds."""

    job: Job
    sidecar: Sidecar | None
    label: str
    stage: str
    owner: str
    deliveries: int


def job_from(row: Row[Any]) -> Job:
    """Return the Job document of a row of ``jobs``."""
    return Job(
        id=row.id,
        key=row.key,
        uri=row.uri,
        name=row.name,
        event_id=row.event_id,
        artifact_sha256=row.artifact_sha256,
        sidecar_sha256=row.sidecar_sha256,
        target=TargetProfile.model_validate(row.target),
        state=JobState(row.state),
        attempt=row.attempt,
        reason=row.reason,
        error=ErrorDocument.model_validate(row.error) if row.error else None,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def claim(database: db.Database, job_id: str, stage: str, owner: str, lease_s: float) -> Claim | None:
    """Take ``stage`` of a job, or return None when there is nothing to take: done, held by another, or cancelled."""
    running = STATE_OF_STAGE[stage]
    entry = [running.value] + ([JobState.RECEIVED.value] if stage == "analyze" else [])
    with database.write() as connection:
        row = connection.execute(select(db.jobs).where(db.jobs.c.id == job_id)).first()
        if row is None or row.state not in entry:
            return None
        changed = connection.execute(
            update(db.jobs)
            .where(
                db.jobs.c.id == job_id,
                db.jobs.c.state == row.state,
                db.jobs.c.cancel_requested.is_(False),
                or_(db.jobs.c.lease_until.is_(None), db.jobs.c.lease_until < time.time()),
            )
            .values(
                state=running.value,
                lease_owner=owner,
                lease_until=time.time() + lease_s,
                deliveries=db.jobs.c.deliveries + 1,
                updated_at=db.now(),
            )
        )
        if not changed.rowcount:
            return None
        if row.state != running.value:
            _note(connection, job_id, JobState(row.state), running, row.attempt, None)
        row = connection.execute(select(db.jobs).where(db.jobs.c.id == job_id)).one()
    sidecar = Sidecar.model_validate(row.sidecar) if row.sidecar else None
    return Claim(job_from(row), sidecar, row.label, stage, owner, row.deliveries)


def heartbeat(database: db.Database, job_id: str, owner: str, lease_s: float) -> bool:
    """Keep the lease. Returns whether cancelling was asked for. Raises LeaseLost."""
    with database.write() as connection:
        kept = connection.execute(
            update(db.jobs)
            .where(db.jobs.c.id == job_id, db.jobs.c.lease_owner == owner)
            .values(lease_until=time.time() + lease_s)
        )
        if not kept.rowcount:
            raise LeaseLost(job_id)
        return bool(connection.execute(select(db.jobs.c.cancel_requested).where(db.jobs.c.id == job_id)).scalar_one())


def release(database: db.Database, claimed: Claim) -> None:
    """Give a claim back undone, as when the worker is asked to stop; the reaper hands it on."""
    with database.write() as connection:
        connection.execute(
            update(db.jobs)
            .where(db.jobs.c.id == claimed.job.id, db.jobs.c.lease_owner == claimed.owner)
            .values(lease_owner=None, lease_until=None, deliveries=db.jobs.c.deliveries - 1)
        )
        _send(connection, claimed.job.id, claimed.stage)


def forgive(database: db.Database, owner: str) -> int:
    """Free what workers of ours held when we stopped them ourselves; that is no death that counts.

    Args:
        owner: The beginning of their lease's owner.
    """
    with database.write() as connection:
        return connection.execute(
            update(db.jobs)
            .where(db.jobs.c.lease_owner.startswith(owner, autoescape=True), db.jobs.c.state.not_in(_ENDS))
            .values(lease_owner=None, lease_until=None, deliveries=db.jobs.c.deliveries - 1)
        ).rowcount


def finish(
    database: db.Database,
    claimed: Claim,
    after: JobState,
    *,
    reason: str | None = None,
    error: ErrorDocument | None = None,
    keep: Mapping[str, Document | list[Any] | dict[str, Any]] | None = None,
) -> None:
    """End a stage: state, history, documents and outbox row in one transaction. Raises LeaseLost."""
    before = STATE_OF_STAGE[claimed.stage]
    assert is_legal(before, after), (before, after)
    with database.write() as connection:
        changed = connection.execute(
            update(db.jobs)
            .where(
                db.jobs.c.id == claimed.job.id,
                db.jobs.c.state == before.value,
                db.jobs.c.lease_owner == claimed.owner,
            )
            .values(
                state=after.value,
                lease_owner=None,
                lease_until=None,
                deliveries=0,
                reason=reason,
                error=error.model_dump(mode="json") if error else None,
                updated_at=db.now(),
            )
        )
        if not changed.rowcount:
            raise LeaseLost(claimed.job.id)
        _note(connection, claimed.job.id, before, after, claimed.job.attempt, reason)
        for kind, document in (keep or {}).items():
            store_document(connection, claimed.job.id, claimed.job.attempt, kind, document)
        connection.execute(delete(db.progress).where(db.progress.c.job_id == claimed.job.id))
        if after not in ENDS:
            _send(connection, claimed.job.id, STAGE_OF_STATE[after])


def store_document(
    connection: Connection, job_id: str, attempt: int, kind: str, document: Document | list[Any] | dict[str, Any]
) -> None:
    """Keep the latest document of a kind for a job."""
    data = document.model_dump(mode="json") if isinstance(document, Document) else document
    where = (db.documents.c.job_id == job_id, db.documents.c.kind == kind)
    if not connection.execute(update(db.documents).where(*where).values(attempt=attempt, document=data)).rowcount:
        connection.execute(db.documents.insert().values(job_id=job_id, kind=kind, attempt=attempt, document=data))


def load_document(database: db.Database, job_id: str, kind: str) -> Any:
    """Return the JSON of a job's document, or None."""
    with database.read() as connection:
        return connection.execute(
            select(db.documents.c.document).where(db.documents.c.job_id == job_id, db.documents.c.kind == kind)
        ).scalar()


def cancel(database: db.Database, job_id: str) -> JobState:
    """Ask for a job's end. At once when nobody works on it, else within a heartbeat. Returns the state seen."""
    with database.write() as connection:
        row = _row(connection, job_id)
        state = JobState(row.state)
        if state in ENDS:
            raise Conflict(f"Job {job_id[:12]} has ended already ({state.value}).", hint="Nothing is left to cancel.")
        connection.execute(update(db.jobs).where(db.jobs.c.id == job_id).values(cancel_requested=True))
        if row.lease_until is not None and row.lease_until >= time.time():
            return state
        _end_cancelled(connection, row)
        return JobState.CANCELLED


def retry(database: db.Database, job_id: str) -> int:
    """Start a new attempt at a job that has ended; return its number."""
    with database.write() as connection:
        row = _row(connection, job_id)
        if JobState(row.state) not in ENDS:
            raise Conflict(
                f"Job {job_id[:12]} is still {row.state}.", hint=f"Cancel it first: modelium cancel {job_id[:12]}"
            )
        if not _was_taken_up(connection, job_id):
            raise Conflict(
                f"Job {job_id[:12]} was refused as it arrived: {row.reason}", hint="Mend the drop, and drop it again."
            )
        attempt = int(row.attempt) + 1
        connection.execute(
            update(db.jobs)
            .where(db.jobs.c.id == job_id, db.jobs.c.state == row.state)
            .values(
                state=JobState.RECEIVED.value,
                attempt=attempt,
                reason=None,
                error=None,
                cancel_requested=False,
                lease_owner=None,
                lease_until=None,
                deliveries=0,
                updated_at=db.now(),
            )
        )
        connection.execute(delete(db.documents).where(db.documents.c.job_id == job_id))
        _note(connection, job_id, JobState(row.state), JobState.RECEIVED, attempt, "retry")
        _send(connection, job_id, "analyze")
    return attempt


def claim_name(database: db.Database, name: str, uri: str) -> str | None:
    """Give ``name`` to ``uri`` for good; return None, or the uri that has it."""
    with database.write() as connection:
        db.insert_ignore(connection, db.names, {"name": name, "uri": uri, "claimed_at": db.now()})
        owner = connection.execute(select(db.names.c.uri).where(db.names.c.name == name)).scalar_one()
        if owner != uri:
            return str(owner)
        return None


def set_name(database: db.Database, job_id: str, name: str) -> None:
    """Write the name a job has been given."""
    with database.write() as connection:
        connection.execute(update(db.jobs).where(db.jobs.c.id == job_id).values(name=name))


def adopt_sidecar(database: db.Database, job: Job, sidecar: Sidecar, sha256: str) -> Job:
    """Give a job the sidecar that its archive held; what the sidecar's target names is the job's from now on."""
    target = sidecar.target.over(job.target) if sidecar.target is not None else job.target
    values = {
        "sidecar": sidecar.model_dump(mode="json"),
        "sidecar_sha256": sha256,
        "target": target.model_dump(mode="json"),
    }
    with database.write() as connection:
        connection.execute(update(db.jobs).where(db.jobs.c.id == job.id).values(**values))
    return job.model_copy(update={"sidecar_sha256": sha256, "target": target})


def reap(database: db.Database, *, republish_after_s: float, all_waiting: bool = False) -> int:
    """Send every job on that nobody works on: its worker died, or its message was lost. Returns how many.

    Args:
        republish_after_s: A waiting job's message is sent again when the last is older; duplicates only cost a look.
        all_waiting: Send every waiting job's message, as at start when the broker may be new.
    """
    sent = 0
    clock, moment = time.time(), db.now()
    with database.write() as connection:
        for row in connection.execute(select(db.jobs).where(db.jobs.c.state.not_in(_ENDS))).all():
            held = row.lease_until is not None and row.lease_until >= clock
            if held:
                continue
            if row.cancel_requested:
                _end_cancelled(connection, row)
                continue
            last = connection.execute(
                select(db.outbox.c.created_at, db.outbox.c.published_at)
                .where(db.outbox.c.job_id == row.id)
                .order_by(db.outbox.c.id.desc())
                .limit(1)
            ).first()
            if last is not None and last.published_at is None:
                continue
            age_s = (moment - last.created_at).total_seconds() if last else float("inf")
            orphaned = row.lease_until is not None
            if orphaned or all_waiting or age_s > republish_after_s:
                connection.execute(
                    update(db.jobs).where(db.jobs.c.id == row.id).values(lease_owner=None, lease_until=None)
                )
                _send(connection, row.id, STAGE_OF_STATE[JobState(row.state)])
                sent += 1
    return sent


def find(database: db.Database, reference: str) -> Job:
    """Return the job that an id, the beginning of one, or a name stands for. Raises NotFound or Conflict."""
    with database.read() as connection:
        rows = connection.execute(
            select(db.jobs)
            .where(or_(db.jobs.c.id.startswith(reference, autoescape=True), db.jobs.c.name == reference,
                       db.jobs.c.label == reference))
            .order_by(case((db.jobs.c.id == reference, 0), else_=1), db.jobs.c.created_at.desc())
        ).all()  # fmt: skip
    if not rows:
        raise NotFound(f"There is no job {reference!r}.", hint="`modelium jobs` lists them.")
    by_id = [row for row in rows if row.id.startswith(reference)]
    if len(by_id) > 1:
        raise Conflict(f"{len(by_id)} jobs begin with {reference!r}.", hint="Give more of the id.")
    return job_from((by_id or rows)[0])


def is_known(database: db.Database, uri: str) -> bool:
    """Whether anything that lay at ``uri`` was ever recorded as a job."""
    with database.read() as connection:
        return connection.execute(select(db.jobs.c.id).where(db.jobs.c.uri == uri).limit(1)).first() is not None


def everything(database: db.Database, *, active: bool = False) -> list[Job]:
    """Return the jobs, oldest first; only those that have not ended when ``active``."""
    query = select(db.jobs).order_by(db.jobs.c.created_at)
    if active:
        query = query.where(db.jobs.c.state.not_in(_ENDS))
    with database.read() as connection:
        return [job_from(row) for row in connection.execute(query).all()]


def history(database: db.Database, job_id: str) -> tuple[Transition, ...]:
    """Return a job's changes of state, oldest first."""
    query = select(db.transitions).where(db.transitions.c.job_id == job_id).order_by(db.transitions.c.id)
    with database.read() as connection:
        return tuple(
            Transition(at=r.at, before=r.before, after=r.after, attempt=r.attempt, reason=r.reason)
            for r in connection.execute(query).all()
        )


def _row(connection: Connection, job_id: str) -> Row[Any]:
    row = connection.execute(select(db.jobs).where(db.jobs.c.id == job_id)).first()
    if row is None:
        raise NotFound(f"There is no job {job_id!r}.", hint="`modelium jobs` lists them.")
    return row


def _note(
    connection: Connection, job_id: str, before: JobState, after: JobState, attempt: int, reason: str | None
) -> None:
    assert is_legal(before, after), (before, after)
    connection.execute(
        db.transitions.insert().values(
            job_id=job_id, at=db.now(), before=before.value, after=after.value, attempt=attempt, reason=reason
        )
    )


def _send(connection: Connection, job_id: str, stage: str) -> None:
    connection.execute(db.outbox.insert().values(job_id=job_id, stage=stage, created_at=db.now()))


def _was_taken_up(connection: Connection, job_id: str) -> bool:
    """Whether a job's drop was stored whole: one refused on arrival ended at once, and by nobody's wish."""
    query = (
        select(db.transitions.c.after).where(db.transitions.c.job_id == job_id).order_by(db.transitions.c.id).limit(2)
    )
    first = connection.execute(query).scalars().all()
    return first[1:] not in ([JobState.FAILED.value], [JobState.NEEDS_INPUT.value])


def _end_cancelled(connection: Connection, row: Row[Any]) -> None:
    reason = "Cancelled by a person."
    connection.execute(
        update(db.jobs)
        .where(db.jobs.c.id == row.id)
        .values(state=JobState.CANCELLED.value, reason=reason, lease_owner=None, lease_until=None, updated_at=db.now())
    )
    connection.execute(delete(db.progress).where(db.progress.c.job_id == row.id))
    _note(connection, row.id, JobState(row.state), JobState.CANCELLED, row.attempt, reason)
