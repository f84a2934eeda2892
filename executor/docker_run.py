"""Waits for a container: streams its log and progress, watches its limits, and brings its end about."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from executor.docker_attached import LOG_STREAM, Attached, End, Streams
from executor.sandbox import Ending, Observers
from executor.stops import TICK_S, Stops, out_of_memory
from executor.watch import Log, Progress, WorkspaceWatch
from schemas.errors import ModeliumError, SandboxCrashed
from schemas.step_run import Limits

_GRACE_S = 5.0


class ContainerRun:
    """What one container that was started does until its end."""

    def __init__(self, container: Attached, *, out: Path, limits: Limits, observers: Observers) -> None:
        self._container, self._limits = container, limits
        self._streams: Streams = container.streams
        self._end: End = container.end()
        self._should_stop = observers.should_stop
        self._log = Log(limits.log_bytes, observers.on_log)
        self._progress = Progress(observers.on_progress)
        self._watch = WorkspaceWatch(out, limits, container.group.pids)
        self._used_before_s = 0.0
        self._cpu_s: float | None = None
        self._peak_bytes = 0
        self._oom = False

    def take_over(self, log: bytes, progress: bytes, used_s: float) -> None:
        """Begin with what was read of it already; ``used_s`` CPU seconds were not the step's."""
        self._used_before_s = used_s
        self._log.feed(log)
        self._progress.feed(progress)

    def follow(self, began: float) -> Ending:
        """Return how it ended."""
        error = self._wait(began)
        if error is not None:
            self._kill()
        exit_code = self._drain()
        if self._end.lost is not None:
            error = _engine_lost(self._end.lost)
        elif self._oom:
            error = out_of_memory(self._limits, self._peak_bytes)
        return Ending(
            exit_code=exit_code,
            error=error,
            log=self._log.finish(),
            wall_s=time.monotonic() - began,
            cpu_s=self._cpu_s,
            peak_memory_bytes=self._peak_bytes or None,
        )

    def _wait(self, began: float) -> ModeliumError | None:
        stops = Stops(self._limits, began, self._should_stop, lambda: self._watch.check() or self._sample())
        while True:
            self._read(stops.patience_s)
            self._progress.flush()
            if self._end.came.is_set():
                return self._watch.scan()
            if (error := stops.reached()) is not None:
                return error

    def _read(self, patience_s: float) -> None:
        if self._streams.at_end:
            self._end.came.wait(patience_s)
            return
        for stream, chunk in self._streams.read(patience_s):
            if stream == LOG_STREAM:
                self._log.feed(chunk)
            else:
                self._progress.feed(chunk)

    def _sample(self) -> ModeliumError | None:
        group = self._container.group
        used, cpu_s = group.memory_bytes(), group.cpu_s()
        if cpu_s is not None:
            self._cpu_s = max(0.0, cpu_s - self._used_before_s)
        self._peak_bytes = max(self._peak_bytes, used or 0)
        # One process killed for want of memory spoils the step, whatever the others still wait for.
        return out_of_memory(self._limits, self._peak_bytes) if group.oom_kills() else None

    def _kill(self) -> None:
        self._read(0)
        self._streams.close()  # an engine that waits for somebody to read a flood does not end the container
        self._container.kill()

    def _drain(self) -> int:
        """Read what is left in the streams, and return the exit code."""
        self._end.came.wait(_GRACE_S)
        deadline = time.monotonic() + _GRACE_S
        while not self._streams.at_end and time.monotonic() < deadline:
            self._read(TICK_S)
        self._progress.flush(final=True)
        if self._end.lost is not None or not self._end.came.is_set():
            return 128 + signal.SIGKILL
        state = self._container.state()
        self._oom = bool(state["OOMKilled"])
        return int(state["ExitCode"])


def _engine_lost(error: Exception) -> SandboxCrashed:
    return SandboxCrashed(
        f"The Docker engine went away while the step ran ({type(error).__name__}).",
        hint="Start it again, then: modelium retry.",
    )
