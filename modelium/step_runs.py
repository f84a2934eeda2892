"""Step runs in the database: begun, followed, ended, listed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, select, update

from modelium import db
from schemas.step_run import StepRun, StepRunState


@dataclass(frozen=True)
class LiveText:
    """A piece of the log of a step that runs. ``id`` grows."""

    id: int
    step_run_id: str
    text: str


def save(database: db.Database, run: StepRun) -> None:
    """Insert or update one run; what was kept of its log while it ran goes once it has ended."""
    with database.write() as connection:
        _save(connection, run)


def _save(connection: Connection, run: StepRun) -> None:
    values = {
        "job_id": run.job_id,
        "attempt": run.attempt,
        "state": run.state.value,
        "cache_key": run.cache_key,
        "document": run.model_dump(mode="json"),
        "started_at": run.started_at,
    }
    if not db.insert_ignore(connection, db.step_runs, {"id": run.id, **values}):
        connection.execute(update(db.step_runs).where(db.step_runs.c.id == run.id).values(**values))
    if run.state is not StepRunState.RUNNING and not run.cached_from:
        connection.execute(delete(db.live_logs).where(db.live_logs.c.step_run_id == run.id))


def of_job(database: db.Database, job_id: str, attempt: int | None = None) -> tuple[StepRun, ...]:
    """Return a job's runs in the order they began; those of one attempt when given.

    Those that run have their log so far.
    """
    query = select(db.step_runs.c.document).where(db.step_runs.c.job_id == job_id)
    if attempt is not None:
        query = query.where(db.step_runs.c.attempt == attempt)
    with database.read() as connection:
        rows = connection.execute(query.order_by(db.step_runs.c.started_at)).scalars().all()
        runs = [StepRun.model_validate(row) for row in rows]
        if all(run.state is not StepRunState.RUNNING for run in runs):
            return tuple(runs)
        said = _live(connection, job_id, 0)
    return tuple(
        run.model_copy(update={"log": "".join(piece.text for piece in said if piece.step_run_id == run.id)})
        if run.state is StepRunState.RUNNING
        else run
        for run in runs
    )


def states(database: db.Database, job_id: str, attempt: int) -> list[tuple[str, StepRunState]]:
    """Return id and state of a job's runs in the order they began, without their documents."""
    query = (
        select(db.step_runs.c.id, db.step_runs.c.state)
        .where(db.step_runs.c.job_id == job_id, db.step_runs.c.attempt == attempt)
        .order_by(db.step_runs.c.started_at)
    )
    with database.read() as connection:
        return [(row.id, StepRunState(row.state)) for row in connection.execute(query).all()]


def load(database: db.Database, run_id: str) -> StepRun:
    """Return one run as it was saved last."""
    with database.read() as connection:
        query = select(db.step_runs.c.document).where(db.step_runs.c.id == run_id)
        return StepRun.model_validate(connection.execute(query).scalar_one())


def live(database: db.Database, job_id: str, after: int = 0) -> Sequence[LiveText]:
    """Return what a job's running steps have printed since the piece with id ``after``."""
    with database.read() as connection:
        return _live(connection, job_id, after)


def _live(connection: Connection, job_id: str, after: int) -> list[LiveText]:
    query = (
        select(db.live_logs.c.id, db.live_logs.c.step_run_id, db.live_logs.c.text)
        .join(db.step_runs, db.step_runs.c.id == db.live_logs.c.step_run_id)
        .where(db.step_runs.c.job_id == job_id, db.live_logs.c.id > after)
        .order_by(db.live_logs.c.id)
    )
    return [LiveText(*row) for row in connection.execute(query).all()]


def mark_lost(database: db.Database, job_id: str) -> None:
    """Mark runs that a dead worker left running; called by whoever claims the job next. Their log so far is kept."""
    if all(state is not StepRunState.RUNNING for state in _all_states(database, job_id)):
        return
    for run in of_job(database, job_id):
        if run.state is StepRunState.RUNNING:
            save(database, run.model_copy(update={"state": StepRunState.LOST, "ended_at": db.now()}))


def _all_states(database: db.Database, job_id: str) -> list[StepRunState]:
    with database.read() as connection:
        query = select(db.step_runs.c.state).where(db.step_runs.c.job_id == job_id)
        return [StepRunState(state) for state in connection.execute(query).scalars()]


def note_progress(database: db.Database, job_id: str, step: str, fraction: float, message: str) -> None:
    """Keep the latest progress of a job."""
    with database.write() as connection:
        _note_progress(connection, job_id, step, fraction, message)


def note_live(database: db.Database, run: StepRun, *, text: str, progress: tuple[float, str] | None) -> None:
    """Keep what a running step said since the last time."""
    with database.write() as connection:
        if text:
            connection.execute(db.live_logs.insert().values(step_run_id=run.id, text=text))
        if progress is not None:
            _note_progress(connection, run.job_id, run.kind, *progress)


def _note_progress(connection: Connection, job_id: str, step: str, fraction: float, message: str) -> None:
    values = {"step": step, "fraction": fraction, "message": message[:300], "at": db.now()}
    changed = connection.execute(update(db.progress).where(db.progress.c.job_id == job_id).values(**values))
    if not changed.rowcount:
        db.insert_ignore(connection, db.progress, {"job_id": job_id, **values})
