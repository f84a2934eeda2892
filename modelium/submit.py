"""Submit: store what arrived and record it; the one way in, for the watcher and the command line alike."""

from __future__ import annotations

import contextlib
import importlib
import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from modelium.bell import ring
from modelium.context import Context
from modelium.store_lock import kept
from schemas.errors import Conflict
from schemas.job import ENDS, JobState
from schemas.target import TargetProfile

if TYPE_CHECKING:
    from ingestion.arrival import Arrival
    from modelium.arrivals import Arrived

log = logging.getLogger(__name__)


def submit(context: Context, arrival: Arrival, *, source: str, target: TargetProfile | None = None) -> Arrived:
    """Store and record one arrival. What ``target`` names itself wins over the sidecar's, and that over the settings'.

    A drop that can never be stored (a link, a strange name) makes a job too: it has ended, and its reason says why.

    Raises:
        StorageFull, StillChanging: The drop stays where it is; report it again later.
        NotFound: It is gone.
    """
    from ingestion import receive
    from ingestion.room import check_room

    home = context.home
    check_room(arrival.size_bytes, home.artifacts, home.workspaces, home.repository)
    with kept(context.home):
        # What records it takes as long to import as a model of some hundred megabytes to copy, which needs no Python.
        threading.Thread(target=importlib.import_module, args=("modelium.arrivals",), daemon=True).start()
        received = receive(arrival, context.store, source=source)
        from modelium import arrivals, jobs

        wanted = context.settings.target
        for layer in (received.sidecar.target if received.sidecar else None, target):
            wanted = layer.over(wanted) if layer is not None else wanted
        arrived = arrivals.record(
            context.database,
            received.event,
            received.artifact,
            label=received.name,
            target=wanted,
            sidecar=received.sidecar,
            sidecar_artifact=received.sidecar_artifact,
            error=received.error,
        )
    job = jobs.find(context.database, arrived.job_id)
    ring(home.bell)
    log.info("%s %s", "received" if arrived.new else "known already:", arrival.uri, extra={"job": job.id})
    if arrived.new and job.state in ENDS:
        from modelium.tasks import write_report

        log.info("-> %s: %s", job.state.value, job.reason, extra={"job": job.id})
        write_report(context, job.id)
    return arrived


def _expect(context: Context, arrival: Arrival) -> None:
    """Let what the first step of a new drop needs begin its imports while the drop is stored and recorded.

    One that is known already may need no step at all. In a new home the tables are made meanwhile, too.
    """
    from modelium.expected import expected_toolchain

    toolchain = expected_toolchain(arrival.uri, arrival.path)
    if toolchain is None:
        return
    if not context.is_new:
        from modelium import jobs

        if jobs.is_known(context.database, arrival.uri):
            return
    context.prepare(toolchain)


def submit_path(context: Context, path: Path, target: TargetProfile | None = None) -> list[str]:
    """Record every model at ``path`` and return its jobs' ids, with a fresh attempt at those that had ended badly."""
    from ingestion.drops import drops

    ids = []
    found = drops(path)
    if found and not context.home.is_up():
        _expect(context, found[0])
    for arrival in found:
        arrived = submit(context, arrival, source="cli", target=target)
        from modelium import jobs

        state = jobs.find(context.database, arrived.job_id).state
        if not arrived.new and state in ENDS - {JobState.DEPLOYED, JobState.UNCHANGED}:
            with contextlib.suppress(Conflict):  # refused on arrival, and for the same reason again
                jobs.retry(context.database, arrived.job_id)
        ids.append(arrived.job_id)
    return ids
