"""Follows one Job from its creation until nothing of it is left."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from pathlib import Path

from executor.kubernetes_cluster import Away, Cluster
from executor.kubernetes_job import PENDING_S, Manifest
from executor.kubernetes_pod import Sight, gone_missing, see, too_late
from executor.marked_log import MarkedLog
from executor.sandbox import Ending, Observers
from executor.stops import out_of_time
from executor.watch import Log, Progress, WorkspaceWatch
from schemas.errors import Cancelled, ModeliumError, SandboxCrashed, SandboxUnavailable
from schemas.step_run import Limits

log = logging.getLogger(__name__)

_TICK_S = 0.1
_LOOK_EVERY_S = 0.5
_ASK_EVERY_S = 0.25
_AWAY_S = 60
"""How long the API server may be silent. Steps survive its restart; what is silent for longer is a fault."""
_GONE_S = 60
_LOG_S = 5
_MORE_LOG_BYTES = 16 << 20
"""How much is read of a log that is full already, for its progress; the rest is left on the node."""


class Run:
    """One Job; used for one call of :meth:`to_its_end`."""

    def __init__(
        self, cluster: Cluster, body: Manifest, mark: str, out: Path, limits: Limits, observers: Observers
    ) -> None:
        self._cluster, self._body, self._limits = cluster, body, limits
        self._name: str = body["metadata"]["name"]
        self._should_stop = observers.should_stop
        self._watch = WorkspaceWatch(out, limits)
        self._log = MarkedLog(mark, Log(limits.log_bytes, observers.on_log), Progress(observers.on_progress))
        self._reader: _LogReader | None = None
        self._seen_pod = False

    def to_its_end(self) -> Ending:
        """Create the Job, wait for its end or bring it about, and delete it. Raises SandboxUnavailable."""
        began = time.monotonic()
        try:
            self._create()
            sight = self._wait(began)
        except BaseException:
            self._delete()
            raise
        wall_s = time.monotonic() - began
        if sight.state == "ended":
            self._read_the_rest()
            self._delete()
        elif self._delete():
            self._read_the_rest()
        else:
            sight = Sight("ended", _still_there(self._name))
        return Ending(
            exit_code=sight.exit_code,
            error=sight.error or self._watch.scan(),
            log=self._log.finish(),
            wall_s=wall_s,
            # The API server tells neither, and what the program says of itself is not to be believed.
            cpu_s=None,
            peak_memory_bytes=None,
        )

    def _create(self) -> None:
        deadline = time.monotonic() + _AWAY_S
        while True:
            try:
                return self._cluster.create_job(self._body)
            except Away as error:
                if time.monotonic() > deadline:
                    raise SandboxCrashed(
                        f"The cluster's API server could not be asked to run the step for {_AWAY_S} s ({error}).",
                        hint="The step is run again later.",
                    ) from None
                time.sleep(_LOOK_EVERY_S)

    def _wait(self, began: float) -> Sight:
        """Return the last sight; one with an error and a state other than "ended" has to be brought to its end."""
        running_since: float | None = None
        look_at = ask_at = began
        answered = time.monotonic()
        sight = Sight("pending")
        while True:
            time.sleep(_TICK_S)
            self._drain()
            self._log.flush()
            now = time.monotonic()
            if now >= ask_at:
                ask_at = now + _ASK_EVERY_S
                if self._should_stop is not None and self._should_stop():
                    return Sight(sight.state, Cancelled("The job was cancelled while this step ran."))
            if (error := self._watch.check()) is not None:
                return Sight(sight.state, error)
            if now >= look_at:
                look_at = now + _LOOK_EVERY_S
                try:
                    sight, answered = self._look(), now
                except Away as away:
                    if now - answered > _AWAY_S:
                        return Sight(sight.state, _away(away))
            if sight.state == "ended":
                return sight
            if sight.state == "running" and running_since is None:
                running_since = now
            if running_since is not None and now - running_since >= self._limits.timeout_s:
                return Sight(sight.state, out_of_time(self._limits, now - running_since))
            if running_since is None and now - began >= PENDING_S:
                return Sight(sight.state, too_late(sight))

    def _look(self) -> Sight:
        pods = self._cluster.pods(self._name)
        pod = pods[-1] if pods else None
        if pod is None and self._seen_pod:
            return Sight("ended", gone_missing())
        self._seen_pod = pod is not None
        names = [self._name, *([pod["metadata"]["name"]] if pod else [])]
        started = pod is not None and pod.get("status", {}).get("phase") not in (None, "Pending")
        sight = see(pod, [] if started else self._cluster.events(*names), self._limits)
        if pod is not None and sight.state != "pending" and self._reader is None:
            self._reader = _LogReader(self._cluster, names[-1], self._limits.log_bytes + _MORE_LOG_BYTES)
            self._reader.start()
        return sight

    def _read_the_rest(self) -> None:
        if self._reader is not None:
            self._reader.finish()
            deadline = time.monotonic() + _LOG_S
            while self._reader.is_alive() and time.monotonic() < deadline:
                self._drain()
                self._reader.join(_TICK_S)
            self._drain()

    def _drain(self) -> None:
        if self._reader is not None:
            with contextlib.suppress(queue.Empty):
                while True:
                    self._log.feed(self._reader.chunks.get_nowait())

    def _delete(self) -> bool:
        if self._reader is not None:
            self._reader.finish()
        try:
            return deleted(self._cluster, self._name)
        except SandboxUnavailable as error:
            log.warning("job %s can't be deleted: %s", self._name, error)
            return False


class _LogReader(threading.Thread):
    """Reads the log of a pod as it grows. A broken connection is made anew, and what was read is read over."""

    def __init__(self, cluster: Cluster, pod: str, limit_bytes: int) -> None:
        super().__init__(name=f"log of {pod}", daemon=True)
        self._cluster, self._pod, self._limit_bytes = cluster, pod, limit_bytes
        self._finished = threading.Event()
        self.chunks: queue.Queue[bytes] = queue.Queue()

    def finish(self) -> None:
        """Tell it that the pod has ended: what is to be read now is all there will be."""
        self._finished.set()

    def run(self) -> None:
        read_bytes = 0
        while read_bytes < self._limit_bytes:
            last = self._finished.is_set()
            try:
                skip_bytes = read_bytes
                for chunk in self._cluster.log(self._pod):
                    fresh = chunk[skip_bytes:]
                    skip_bytes -= len(chunk) - len(fresh)
                    read_bytes += len(fresh)
                    if fresh:
                        self.chunks.put(fresh)
                    if read_bytes >= self._limit_bytes:
                        return
                if last:
                    return
            except SandboxUnavailable as error:
                log.warning("the log of pod %s can't be read: %s", self._pod, error)
                return
            except Away:
                if last:
                    return
            self._finished.wait(_LOOK_EVERY_S)


def deleted(cluster: Cluster, name: str) -> bool:
    """Delete a Job and wait until its pods are gone; return whether they are. Raises SandboxUnavailable."""
    deadline, asked = time.monotonic() + _GONE_S, False
    while True:
        try:
            if not asked:
                cluster.delete_job(name)
                asked = True
            if not cluster.jobs(name) and not cluster.pods(name):
                return True
        except Away as error:
            log.debug("job %s: %s", name, error)
        if time.monotonic() > deadline:
            log.error("job %s is not known to be gone after %s s", name, _GONE_S)
            return False
        time.sleep(_TICK_S)


def _away(away: Away) -> ModeliumError:
    return SandboxCrashed(
        f"The cluster's API server has not answered for {_AWAY_S} s while the step ran ({str(away)[:300]}).",
        hint="The step is run again later.",
    )


def _still_there(name: str) -> ModeliumError:
    return SandboxCrashed(
        f"The pod of this step is not known to have ended (job {name}).",
        hint="Its node may be lost: look at it (kubectl get pods -o wide). The job ends at its deadline, or when a "
        "worker starts and sweeps.",
    )
