"""Heartbeat: a claim is kept while its stage is at work, and its work is told when the claim was lost or cancelled."""

from __future__ import annotations

import threading
from collections.abc import Callable

from modelium import jobs
from modelium.work import Work


def keep_alive(work: Work, lease_s: float) -> Callable[[], None]:
    """Start the heartbeat of a claim in a thread; return the function that ends it."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(lease_s / 4):
            try:
                if jobs.heartbeat(work.context.database, work.claim.job.id, work.claim.owner, lease_s):
                    work.stopping.set()
            except jobs.LeaseLost:
                work.lost = True
                work.stopping.set()
                return

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()

    def stop() -> None:
        ended.set()
        thread.join(timeout=5)

    return stop
