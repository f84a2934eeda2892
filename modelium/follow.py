"""Follow jobs to their ends; run their stages here when no ``modelium up`` does."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import select

from modelium import db, jobs, outbox, tasks
from modelium.context import Context
from schemas.errors import Conflict
from schemas.job import ENDS, JobState

FIRST_POLL_S, POLL_S = 0.02, 0.2
_POLL_SHARE = 0.05
"""Of the time followed so far, what may pass until the next look: the end of what ends soon is seen at once."""
_GLANCE_S = 0.02
"""Between glances at whether any job of this home has ended meanwhile, each some microseconds."""


@dataclass(frozen=True)
class Update:
    """Where a job is now. ``fraction`` in 0..1 is the present step's, None when it tells none."""

    job_id: str
    name: str
    state: JobState
    step: str | None = None
    fraction: float | None = None
    message: str = ""


def look(context: Context, job_ids: Iterable[str] | None = None) -> list[Update]:
    """Return where jobs are, oldest first; all of them when ``job_ids`` is None."""
    query = (
        select(db.jobs, db.progress.c.step, db.progress.c.fraction, db.progress.c.message)
        .select_from(db.jobs.outerjoin(db.progress))
        .order_by(db.jobs.c.created_at)
    )
    if job_ids is not None:
        query = query.where(db.jobs.c.id.in_(list(job_ids)))
    with context.database.read() as connection:
        rows = connection.execute(query).all()
    return [
        Update(
            job_id=row.id,
            name=row.name or row.label,
            state=JobState(row.state),
            step=row.step,
            fraction=row.fraction,
            message=(row.reason if JobState(row.state) in ENDS else row.message) or "",
        )
        for row in rows
    ]


def to_the_end(context: Context, job_ids: Sequence[str], show: Callable[[Update], None]) -> None:
    """Follow jobs until each has ended; an interrupt cancels those that have not and waits for that."""
    stop = threading.Event()
    driver = threading.Thread(target=_drive, args=(context, list(job_ids), stop), name="driver", daemon=True)
    driver.start()
    seen: dict[str, Update] = {}

    def follow() -> None:
        watch(context, job_ids, show, lambda: not driver.is_alive(), seen)

    try:
        follow()
    except KeyboardInterrupt:
        cancel(context, job_ids)
        follow()
    finally:
        stop.set()
        driver.join(timeout=context.settings.lease_s)


def watch(
    context: Context,
    job_ids: Sequence[str],
    show: Callable[[Update], None],
    is_over: Callable[[], bool],
    seen: dict[str, Update] | None = None,
) -> None:
    """Show every change of jobs that is not among ``seen`` until each has ended, or until there is nothing to wait for.

    ``is_over`` is asked for the latter, some fifty times a second.
    """
    seen = {} if seen is None else seen
    began = time.monotonic()
    while True:
        over, ended = is_over(), _last_end(context)
        updates = look(context, job_ids)
        for update in updates:
            if seen.get(update.job_id) != update:
                seen[update.job_id] = update
                show(update)
        if over or all(update.state in ENDS for update in updates):
            return
        _pause(context, is_over, _pause_s(began), ended)


def cancel(context: Context, job_ids: Sequence[str]) -> None:
    """Cancel those jobs that have not ended."""
    for update in look(context, job_ids):
        if update.state not in ENDS:
            with contextlib.suppress(Conflict):  # it has ended meanwhile
                jobs.cancel(context.database, update.job_id)


def _pause(context: Context, is_over: Callable[[], bool], most_s: float, ended: int) -> None:
    """Wait until the next look, or until a job ends before it on this machine; the last one did at ``ended``."""
    until = time.monotonic() + most_s
    while not is_over() and _last_end(context) == ended and (left_s := until - time.monotonic()) > 0:
        time.sleep(min(left_s, _GLANCE_S))


def _last_end(context: Context) -> int:
    try:
        return context.home.ended.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _pause_s(began: float) -> float:
    return min(POLL_S, max(FIRST_POLL_S, _POLL_SHARE * (time.monotonic() - began)))


def _drive(context: Context, job_ids: list[str], stop: threading.Event) -> None:
    """Run the jobs' stages one after the other, with the same claims as any worker."""
    for job_id in job_ids:
        while not stop.is_set():
            state = jobs.find(context.database, job_id).state
            if state in ENDS:
                break
            if context.home.is_up():
                stop.wait(POLL_S)
                continue
            outbox.discard(context.database, job_id)
            if tasks.run_stage(context, job_id, jobs.STAGE_OF_STATE[state]) is None:
                stop.wait(POLL_S)  # somebody else holds it, or its holder has just died
