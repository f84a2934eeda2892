"""One stage of one job: claim it, run it, save what it decided. The edge where our own bugs are caught."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from uuid import uuid4

from modelium import jobs, step_runs
from modelium.arrivals import end_state
from modelium.context import Context
from modelium.heartbeat import keep_alive
from modelium.stages.next_state import Next
from modelium.work import Work
from schemas.errors import ErrorDocument, ModeliumError
from schemas.job import ENDS, JobState

log = logging.getLogger(__name__)
Stage = Callable[[Work], Next]
_running: set[Work] = set()
"""Stages at work in this process. Changed by one operation each, so that a signal handler may read it."""


def stage_function(stage: str) -> Stage:
    """Return the function of a stage; imported on use, so that commands which run none stay light."""
    from modelium.stages import analyze, deploy, execute, measure, plan

    functions: dict[str, Stage] = {
        "analyze": analyze.analyze,
        "plan": plan.plan,
        "execute": execute.execute,
        "measure": measure.measure,
        "deploy": deploy.deploy,
    }
    return functions[stage]


def owner_of(pid: int) -> str:
    """Return how the lease owners of one process of this machine begin."""
    return f"{socket.gethostname()[:20]}-{pid}-"


def run_stage(context: Context, job_id: str, stage: str) -> JobState | None:
    """Run one stage of one job if it can be claimed; return the state it led to, None when there was nothing to do.

    Idempotent: a message that comes twice, or late, finds nothing to claim.
    """
    settings = context.settings
    owner = f"{owner_of(os.getpid())}{uuid4().hex[:8]}"
    claimed = jobs.claim(context.database, job_id, stage, owner, settings.lease_s)
    if claimed is None:
        return None
    work = Work(context, claimed)
    _running.add(work)
    stop_heartbeat = keep_alive(work, settings.lease_s)
    extra = {"job": job_id}
    log.info("%s %s", stage, claimed.job.uri, extra=extra)
    try:
        step_runs.mark_lost(context.database, job_id)
        decided = _run(work, stage)
        jobs.finish(
            context.database, claimed, decided.state, reason=decided.reason, error=decided.error, keep=decided.keep
        )
    except jobs.LeaseLost:
        log.warning("%s lost its lease; another worker has the job", stage, extra=extra)
        return None
    except jobs.Interrupted:
        jobs.release(context.database, claimed)
        return None
    except (KeyboardInterrupt, SystemExit):
        jobs.release(context.database, claimed)
        raise
    finally:
        _running.discard(work)
        stop_heartbeat()
    log.info("%s -> %s%s", stage, decided.state.value, f": {decided.reason}" if decided.reason else "", extra=extra)
    if decided.state in ENDS:
        context.home.ended.touch()
        write_report(context, job_id)
    return decided.state


def interrupt() -> None:
    """Have the stages of this process give their jobs back undone, as soon as they look. Safe in a signal handler."""
    for work in tuple(_running):
        work.interrupted = True
        work.stopping.set()


def _run(work: Work, stage: str) -> Next:
    claimed = work.claim
    if claimed.deliveries > work.context.settings.max_deliveries:
        error = ErrorDocument(
            code="internal",
            message=f"{claimed.deliveries - 1} workers died while {claimed.job.state.value} this model.",
            hint="It probably needs more memory than this machine has; `modelium retry` starts it again.",
        )
        return Next(JobState.FAILED, reason=error.message, error=error)
    try:
        return stage_function(stage)(work)
    except (jobs.LeaseLost, jobs.Interrupted):
        raise
    except ModeliumError as error:
        if work.lost:
            raise jobs.LeaseLost(claimed.job.id) from error
        if work.interrupted:
            raise jobs.Interrupted(claimed.job.id) from error
        return Next(end_state(error), reason=str(error.args[0]), error=error.document())
    except Exception as error:
        log.exception("%s failed", stage, extra={"job": claimed.job.id})
        document = ErrorDocument(
            code="internal",
            message=f"Modelium itself failed while {claimed.job.state.value}: {type(error).__name__}: {error}"[:2000],
            hint="This is a fault of ours, not of the model; the log has the details.",
        )
        return Next(JobState.FAILED, reason=document.message, error=document)


def write_report(context: Context, job_id: str) -> None:
    """Write the report of a job that has ended; a report that cannot be written never changes a job."""
    from modelium.account import build
    from modelium.report import write

    try:
        write(build(context, job_id), context.home.reports / job_id[:12])
    except Exception:
        log.exception("the report could not be written", extra={"job": job_id})
