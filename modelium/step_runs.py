"""Step runs in the database: begun, ended, listed."""

from __future__ import annotations

from sqlalchemy import select, update

from modelium import db
from schemas.step_run import StepRun, StepRunState


def save(database: db.Database, run: StepRun) -> None:
    """Insert or update one run."""
    values = {
        "job_id": run.job_id,
        "attempt": run.attempt,
        "state": run.state.value,
        "cache_key": run.cache_key,
        "document": run.model_dump(mode="json"),
        "started_at": run.started_at,
    }
    with database.write() as connection:
        if not db.insert_ignore(connection, db.step_runs, {"id": run.id, **values}):
            connection.execute(update(db.step_runs).where(db.step_runs.c.id == run.id).values(**values))


def of_job(database: db.Database, job_id: str, attempt: int | None = None) -> tuple[StepRun, ...]:
    """Return a job's runs in the order they began; those of one attempt when given."""
    query = select(db.step_runs.c.document).where(db.step_runs.c.job_id == job_id)
    if attempt is not None:
        query = query.where(db.step_runs.c.attempt == attempt)
    with database.read() as connection:
        rows = connection.execute(query.order_by(db.step_runs.c.started_at)).scalars().all()
    return tuple(StepRun.model_validate(row) for row in rows)


def mark_lost(database: db.Database, job_id: str) -> None:
    """Mark runs that a dead worker left running; called by whoever claims the job after it."""
    for run in of_job(database, job_id):
        if run.state is StepRunState.RUNNING:
            save(database, run.model_copy(update={"state": StepRunState.LOST, "ended_at": db.now()}))


def note_progress(database: db.Database, job_id: str, step: str, fraction: float, message: str) -> None:
    """Keep the latest progress of a job."""
    values = {"step": step, "fraction": fraction, "message": message[:300], "at": db.now()}
    with database.write() as connection:
        changed = connection.execute(update(db.progress).where(db.progress.c.job_id == job_id).values(**values))
        if not changed.rowcount:
            db.insert_ignore(connection, db.progress, {"job_id": job_id, **values})
