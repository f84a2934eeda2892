"""Waits for a sandbox: streams its log and progress, watches its limits, and ends it for certain."""

from __future__ import annotations

import os
import selectors
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from executor.cgroup import Cgroup
from executor.cold_start import ColdStart, adopting
from executor.pipes import READ_BYTES, Pipes
from executor.processes import (
    available_bytes,
    descendants,
    proportional_bytes,
    resident_bytes,
    thread_count,
    unmapped_bytes,
)
from executor.sandbox import Ending, Observers
from executor.stops import Stops, out_of_memory, too_many_processes
from executor.watch import Log, Progress, WorkspaceWatch
from schemas.errors import LimitExceeded, ModeliumError
from schemas.step_run import Limits

_READS_A_TICK = 64
_RESERVE_BYTES = 256 << 20
"""Without a control group some memory belongs to no process (in flight, System V): it shows here, and ends with it."""
_LAUNCHER_PROCESSES = 3
"""What starts the program inside: bubblewrap, as process 1 too, and what drops privileges."""


class Started(Protocol):
    """A sandbox that runs. ``ended`` becomes readable with its end, ``report`` when it says something of itself."""

    ended: int
    report: int
    exit_code: int
    inherited_bytes: int
    """Memory that a new process would have taken, and a forked one has in common with its parent."""

    @property
    def pid(self) -> int:
        """The process whose descendants are the step."""

    def hear(self) -> bool:
        """Read what it reports; return False when it reports no more."""

    def end(self) -> float | None:
        """Kill what still runs, wait until all of it is gone, and return the CPU seconds it used."""


def supervise(
    argv: Sequence[str],
    pipes: Pipes,
    *,
    cgroup: Cgroup,
    out: Path,
    limits: Limits,
    observers: Observers,
    cwd: Path = Path("/"),
) -> Ending:
    """Run ``argv`` until it ends, or must end; return when none of its processes is left."""
    began = time.monotonic()
    with adopting():
        started = ColdStart(argv, pipes, cgroup, cwd)
        return follow(started, pipes, began=began, cgroup=cgroup, out=out, limits=limits, observers=observers)


def follow(
    started: Started, pipes: Pipes, *, began: float, cgroup: Cgroup, out: Path, limits: Limits, observers: Observers
) -> Ending:
    """Wait until ``started`` ends, or must end; return when none of its processes is left."""
    try:
        pipes.close_inherited()
        run = _Running(started, pipes, cgroup, out, limits, observers)
        error = run.wait(began)
    finally:
        # Also when the caller is interrupted: nothing may go on without its owner.
        used_cpu_s = started.end()
    log = run.drain()
    if cgroup.oom_kills():
        error = out_of_memory(limits, run.peak_memory_bytes)
    return Ending(
        exit_code=started.exit_code,
        error=error,
        log=log,
        wall_s=time.monotonic() - began,
        cpu_s=cpu_s if (cpu_s := cgroup.cpu_s()) is not None else used_cpu_s,
        peak_memory_bytes=run.peak_memory_bytes or None,
    )


class _Running:
    """One run from its start to its end."""

    def __init__(
        self, started: Started, pipes: Pipes, cgroup: Cgroup, out: Path, limits: Limits, observers: Observers
    ) -> None:
        self._started, self._pipes, self._cgroup, self._limits = started, pipes, cgroup, limits
        self._should_stop = observers.should_stop
        self._watch = WorkspaceWatch(out, limits, self._pids)
        self._log = Log(limits.log_bytes, observers.on_log)
        self._progress = Progress(observers.on_progress)
        for descriptor in (pipes.log[0], pipes.progress[0]):
            os.set_blocking(descriptor, False)
        self.peak_memory_bytes = 0

    def wait(self, began: float) -> ModeliumError | None:
        """Wait for the end; return why it has to be brought about, or None when it came by itself."""
        stops = Stops(self._limits, began, self._should_stop, lambda: self._watch.check() or self._sample())
        with selectors.DefaultSelector() as selector:
            for descriptor in (self._pipes.log[0], self._pipes.progress[0], self._started.report, self._started.ended):
                selector.register(descriptor, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select(stops.patience_s):
                    if key.fd == self._started.ended:
                        return self._watch.scan()
                    if not self._read(key.fd):
                        selector.unregister(key.fd)
                self._progress.flush()
                if (error := stops.reached()) is not None:
                    return error

    def drain(self) -> str:
        """Read what is left in the pipes and return the whole log."""
        for descriptor in (self._pipes.log[0], self._pipes.progress[0]):
            self._read(descriptor)
        self._progress.flush(final=True)
        return self._log.finish()

    def _read(self, descriptor: int) -> bool:
        """Read what is there, but not for ever; return False at the end of the pipe."""
        if descriptor == self._started.report:
            return self._started.hear()
        for _ in range(_READS_A_TICK):
            try:
                chunk = os.read(descriptor, READ_BYTES)
            except BlockingIOError:
                return True
            if not chunk:
                return False
            if descriptor == self._pipes.log[0]:
                self._log.feed(chunk)
            else:
                self._progress.feed(chunk)
        return True

    def _sample(self) -> ModeliumError | None:
        if self._cgroup.label("pids") is None and (error := self._count()) is not None:
            return error
        used, beside = self._cgroup.memory_bytes(), self._started.inherited_bytes
        if used is None:
            beside = 0
            pids = list(self._pids())
            used = sum(resident_bytes(pid) for pid in pids)
            if used > self._limits.memory_bytes:  # counts shared pages once a process: look closer, which costs more
                used = sum(proportional_bytes(pid) for pid in pids)
            used += unmapped_bytes(pids)
            left = available_bytes()
            if left is not None and left < _RESERVE_BYTES:
                return LimitExceeded(
                    f"The machine had less than {_RESERVE_BYTES >> 20} MiB of memory left while this step ran.",
                    hint="Free some memory, or run fewer steps at once (MODELIUM_WORKERS).",
                    limit=self._limits.memory_bytes,
                    actual=used,
                )
        self.peak_memory_bytes = max(self.peak_memory_bytes, used + beside)
        # One process killed for want of memory spoils the step, whatever the others still wait for.
        if used > self._limits.memory_bytes or self._cgroup.oom_kills():
            return out_of_memory(self._limits, used)
        return None

    def _count(self) -> ModeliumError | None:
        """Look at what RLIMIT_NPROC bounds: not where the user outside is the machine's root, whatever it is inside."""
        count = 0
        for pid in self._pids():  # of a fork bomb there is no end
            count += thread_count(pid)
            if count > self._limits.processes + _LAUNCHER_PROCESSES:
                return too_many_processes(self._limits, count)
        return None

    def _pids(self) -> Iterator[int]:
        return descendants(self._started.pid)
