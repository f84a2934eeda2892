"""``modelium up``: broker, workers, watcher, relay and reaper, all ending with their owner."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import IO, TYPE_CHECKING

import psutil

from modelium import broker, jobs, outbox, tasks
from modelium.bell import Bell, ring
from modelium.context import Context
from modelium.hand_in import settings_stamp
from modelium.reception import Reception
from modelium.settings import adopt
from modelium.submit import submit
from schemas.errors import Conflict

if TYPE_CHECKING:
    from ingestion.arrival import Arrival

log = logging.getLogger(__name__)
RELAY_S = 0.25
REAP_S = 2.0
REPUBLISH_AFTER_S = 60.0
STOP_S = 20.0


class Supervisor:
    """Everything ``modelium up`` starts. Use from the main thread: the kernel ties the children to it."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.ready = threading.Event()
        self._stamp = settings_stamp(os.environ)
        self._stop = threading.Event()
        self._lock: IO[str] | None = None
        self._broker: subprocess.Popen[bytes] | None = None
        self._workers: dict[str, subprocess.Popen[bytes]] = {}

    def run(self, tick: Callable[[], bool]) -> None:
        """Run until ``tick``, called a few times a second, returns False, or a signal arrives."""
        self._take_lock()
        try:
            self._start(tick)
        finally:
            self._end()

    def _take_lock(self) -> None:
        self._lock = self.context.home.up_lock.open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(
                f"`modelium up` runs on {self.context.home.root} already.",
                hint="Drop files into its incoming folder, or give another --home.",
            ) from None

    def _start(self, tick: Callable[[], bool]) -> None:
        from ingestion.folder import FolderSource

        context, settings = self.context, self.context.settings
        _ = context.database, context.sandbox  # migrate, and refuse before anything starts
        adopt(settings)
        if not settings.broker_url:
            self._broker = broker.start(context)
        for name in ("general", "measure"):
            self._workers[name] = self._start_worker(name)
        from modelium.celery_app import publish

        jobs.reap(context.database, republish_after_s=0, all_waiting=True)
        source = FolderSource(
            context.home.incoming,
            self._arrived,
            settle_s=settings.settle_s,
            folder_quiet_s=settings.folder_quiet_s,
            rescan_s=settings.rescan_s,
        )
        source.start()
        self.ready.set()
        reaped = 0.0
        bell = Bell(context.home.bell)
        try:
            with Reception(context, self._stamp):
                while not self._stop.is_set() and tick():
                    try:
                        outbox.relay(context.database, publish)
                        if time.monotonic() - reaped > REAP_S:
                            reaped = time.monotonic()
                            jobs.reap(context.database, republish_after_s=REPUBLISH_AFTER_S)
                            outbox.prune(context.database)
                            self._mend()
                    except OSError as error:  # the broker is away; what is in the outbox is sent when it is back
                        log.warning("the broker does not answer: %s", error)
                    bell.wait(RELAY_S)
        finally:
            source.stop()
            bell.close()

    def _arrived(self, arrival: Arrival) -> None:
        submit(self.context, arrival, source="folder")

    def _start_worker(self, name: str) -> subprocess.Popen[bytes]:
        from modelium.celery_app import GENERAL_QUEUES, MEASURE_QUEUE

        # Threads, since a stage only waits for sandboxes: those of one process share what steps are forked from.
        queues = GENERAL_QUEUES if name == "general" else (MEASURE_QUEUE,)
        workers = self.context.settings.workers if name == "general" else 1
        command = [
            sys.executable, "-P", "-m", "celery", "-A", "modelium.celery_app", "worker", "--queues", ",".join(queues),
            "--pool", "threads", "--concurrency", str(workers), "--hostname", f"{name}@modelium", "--without-gossip",
            "--without-mingle", "--without-heartbeat", "--loglevel", self.context.settings.log_level,
        ]  # fmt: skip
        with (self.context.home.logs / f"{name}.log").open("ab") as log_file:
            return subprocess.Popen(
                command,
                cwd="/",  # celery looks for our modules in the folder it is started in before it looks anywhere else
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=broker.die_with_parent,
            )

    def _mend(self) -> None:
        """Start again what has died; a broker keeps its queue in the append-only file."""
        if self._broker is not None and self._broker.poll() is not None:
            log.error("the broker died (%s); starting it again", self._broker.returncode)
            self._broker = broker.start(self.context)
        for name, process in list(self._workers.items()):
            if process.poll() is not None:
                log.error("worker %s died (%s); starting it again", name, process.returncode)
                self._workers[name] = self._start_worker(name)

    def stop(self) -> None:
        """Ask ``run`` to end; safe in a signal handler."""
        self._stop.set()
        ring(self.context.home.bell)

    def _end(self) -> None:
        family = [child.pid for child in psutil.Process().children(recursive=True)]
        for process in self._workers.values():
            if process.poll() is None:
                # A stage in progress is given back, and taken up at the next start.
                process.terminate()
        deadline = time.monotonic() + STOP_S
        for process in self._workers.values():
            try:
                process.wait(timeout=max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        for pid in family:
            jobs.forgive(self.context.database, tasks.owner_of(pid))
        if self._broker is not None:
            self._broker.terminate()
            self._broker.wait(timeout=STOP_S)
        if self._lock is not None:
            self._lock.close()
