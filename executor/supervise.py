"""Waits for a sandbox: streams its log and progress, watches its limits, and ends it for certain."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from executor.cgroup import Cgroup
from executor.sandbox import Ending, Observers
from executor.stops import ASK_EVERY_S, TICK_S, cancelled, out_of_memory, out_of_time
from executor.watch import Log, Progress, WorkspaceWatch
from schemas.errors import LimitExceeded, ModeliumError
from schemas.step_run import Limits

_READ_BYTES = 1 << 16
_READS_A_TICK = 64
_GRACE_S = 2.0
_PR_SET_CHILD_SUBREAPER = 36
_adopters, _adopters_lock = 0, threading.Lock()
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_RESERVE_BYTES = 256 << 20
"""Without a control group some memory belongs to no process (in flight, System V): it shows here, and ends with it."""


class Pipes:
    """The pipes of one run. Each end is closed exactly once: its number may be another thread's a moment later."""

    def __init__(self) -> None:
        self._open: set[int] = set()
        self.log, self.progress, self.info = self._pipe(), self._pipe(), self._pipe()
        self.inherited = [self.progress[1], self.info[1]]
        """What the child keeps open beside its log."""

    def data(self, content: bytes) -> int:
        """Return a new descriptor from which the child reads ``content``."""
        descriptor = os.memfd_create("modelium")
        self._open.add(descriptor)
        self.inherited.append(descriptor)
        os.write(descriptor, content)
        os.lseek(descriptor, 0, os.SEEK_SET)
        return descriptor

    def close_inherited(self) -> None:
        """Close this process's copies of what the child has: only so does a pipe end with it."""
        self._close({self.log[1], *self.inherited})

    def close(self) -> None:
        """Close whatever is still open."""
        self._close(set(self._open))

    def _pipe(self) -> tuple[int, int]:
        ends = os.pipe()
        self._open.update(ends)
        return ends

    def _close(self, descriptors: set[int]) -> None:
        for descriptor in descriptors & self._open:
            self._open.discard(descriptor)
            os.close(descriptor)


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
    """Run ``argv`` until it ends, or must end; return when none of its processes is left.

    With bubblewrap ``argv`` names its process 1 on ``pipes.info``; its end is the end of all. Without, the process
    group and all descendants found at the time are killed.
    """
    began = time.monotonic()
    with _adopting():
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=pipes.log[1],
            stderr=pipes.log[1],
            pass_fds=pipes.inherited,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            cwd=cwd,
            start_new_session=True,
        )
        run = _Running(process, pipes, cgroup, out, limits, observers)
        try:
            pipes.close_inherited()
            error = run.wait(began)
        finally:
            # Also when the caller is interrupted: nothing may go on without its owner.
            usage_cpu_s = run.end()
    log = run.drain()
    if cgroup.oom_kills():
        error = out_of_memory(limits, run.peak_memory_bytes)
    return Ending(
        exit_code=run.exit_code,
        error=error,
        log=log,
        wall_s=time.monotonic() - began,
        cpu_s=cpu_s if (cpu_s := cgroup.cpu_s()) is not None else usage_cpu_s,
        peak_memory_bytes=run.peak_memory_bytes or None,
    )


class _Running:
    """One run from its start to its end."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        pipes: Pipes,
        cgroup: Cgroup,
        out: Path,
        limits: Limits,
        observers: Observers,
    ) -> None:
        self._process, self._pipes, self._cgroup, self._limits = process, pipes, cgroup, limits
        self._should_stop = observers.should_stop
        self._watch = WorkspaceWatch(out, limits, self._pids)
        self._log = Log(limits.log_bytes, observers.on_log)
        self._progress = Progress(observers.on_progress)
        self._ended = os.pidfd_open(process.pid)
        for descriptor in (pipes.log[0], pipes.progress[0], pipes.info[0]):
            os.set_blocking(descriptor, False)
        self._info = b""
        self._init: int | None = None  # pidfd of process 1 of the sandbox
        self._init_pid: int | None = None
        self.exit_code = -1
        self.peak_memory_bytes = 0

    def wait(self, began: float) -> ModeliumError | None:
        """Wait for the end; return why it has to be brought about, or None when it came by itself."""
        deadline, ask_at = began + self._limits.timeout_s, began
        with selectors.DefaultSelector() as selector:
            for descriptor in (self._pipes.log[0], self._pipes.progress[0], self._pipes.info[0], self._ended):
                selector.register(descriptor, selectors.EVENT_READ)
            sample_at = 0.0
            while True:
                now = time.monotonic()
                events = selector.select(max(0.0, min(TICK_S, deadline - now)))
                for key, _ in events:
                    if key.fd == self._ended:
                        return self._watch.scan()
                    if not self._read(key.fd):
                        selector.unregister(key.fd)
                self._progress.flush()
                now = time.monotonic()
                if now >= deadline:
                    return out_of_time(self._limits, now - began)
                if now >= ask_at:
                    ask_at = now + ASK_EVERY_S
                    if self._should_stop is not None and self._should_stop():
                        return cancelled()
                if now >= sample_at:
                    sample_at = now + TICK_S
                    if (error := self._watch.check() or self._sample()) is not None:
                        return error

    def end(self) -> float:
        """Kill what still runs, wait until all of it is gone, and return the CPU seconds it used."""
        self._read(self._pipes.info[0])
        running = not _is_ready(self._ended, 0)
        if running and self._init is not None:
            # Process 1 takes all of its namespace along; bwrap then reaps it and ends by itself, with its usage.
            _send(self._init, signal.SIGKILL)
            running = not _is_ready(self._ended, _GRACE_S)
        if running:
            self._kill_tree()
        _, status, usage = os.wait4(self._process.pid, 0)
        self.exit_code = os.waitstatus_to_exitcode(status)
        if self.exit_code < 0:
            self.exit_code = 128 - self.exit_code
        self._process.returncode = self.exit_code  # reaped here, as Popen cannot tell usage
        cpu_s = usage.ru_utime + usage.ru_stime
        # bwrap ends as soon as it knows the exit code, or was killed: its process 1 is dying, and has become our child.
        # It is in bwrap's session until bwrap has told its pid, and in one of its own later.
        self._read(self._pipes.info[0])
        for pid in _children():
            if pid == self._init_pid or _session(pid) == self._process.pid:
                os.kill(pid, signal.SIGKILL)
                with contextlib.suppress(ChildProcessError):
                    usage = os.wait4(pid, 0)[2]
                    cpu_s += usage.ru_utime + usage.ru_stime
        if self._init is not None:
            _is_ready(self._init, _GRACE_S)
            os.close(self._init)
        os.close(self._ended)
        self._cgroup.kill()
        return cpu_s

    def drain(self) -> str:
        """Read what is left in the pipes and return the whole log."""
        for descriptor in (self._pipes.log[0], self._pipes.progress[0]):
            self._read(descriptor)
        self._progress.flush(final=True)
        return self._log.finish()

    def _read(self, descriptor: int) -> bool:
        """Read what is there, but not for ever; return False at the end of the pipe."""
        for _ in range(_READS_A_TICK):
            try:
                chunk = os.read(descriptor, _READ_BYTES)
            except BlockingIOError:
                return True
            if not chunk:
                return False
            if descriptor == self._pipes.log[0]:
                self._log.feed(chunk)
            elif descriptor == self._pipes.progress[0]:
                self._progress.feed(chunk)
            else:
                self._meet_init(chunk)
        return True

    def _meet_init(self, chunk: bytes) -> None:
        self._info += chunk
        with contextlib.suppress(ValueError, KeyError, ProcessLookupError):
            pid = int(json.loads(self._info)["child-pid"])
            self._init, self._init_pid = os.pidfd_open(pid), pid

    def _sample(self) -> ModeliumError | None:
        used = self._cgroup.memory_bytes()
        if used is None:
            pids = list(self._pids())
            used = sum(_resident_bytes(pid) for pid in pids)
            if used > self._limits.memory_bytes:  # counts shared pages once a process: look closer, which costs more
                used = sum(_proportional_bytes(pid) for pid in pids)
            used += _unmapped_bytes(pids)
            if _available_bytes() < _RESERVE_BYTES:
                return LimitExceeded(
                    f"The machine had less than {_RESERVE_BYTES >> 20} MiB of memory left while this step ran.",
                    hint="Free some memory, or run fewer steps at once (MODELIUM_WORKERS).",
                    limit=self._limits.memory_bytes,
                    actual=used,
                )
        self.peak_memory_bytes = max(self.peak_memory_bytes, used)
        # One process killed for want of memory spoils the step, whatever the others still wait for.
        if used > self._limits.memory_bytes or self._cgroup.oom_kills():
            return out_of_memory(self._limits, used)
        return None

    def _pids(self) -> Iterator[int]:
        return _descendants(self._init_pid or self._process.pid)

    def _kill_tree(self) -> None:
        pids = list(_descendants(self._process.pid))
        for pid in [self._process.pid, *pids]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._cgroup.kill()


@contextlib.contextmanager
def _adopting() -> Iterator[None]:
    """Have the kernel give this process its orphaned grandchildren meanwhile, to reap them and count their usage."""
    global _adopters
    with _adopters_lock:
        _adopters += 1
        _libc().prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        with _adopters_lock:
            _adopters -= 1
            if not _adopters:
                _libc().prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def _children() -> list[int]:
    children: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            children += map(int, (task / "children").read_text().split())
    return children


def _session(pid: int) -> int:
    with contextlib.suppress(OSError):
        return os.getsid(pid)
    return 0


def _descendants(pid: int) -> Iterator[int]:
    """Yield ``pid`` and its descendants, as far as they still hang together."""
    waiting = [pid]
    while waiting:
        current = waiting.pop()
        yield current
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{current}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except OSError:
        return 0


def _proportional_bytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return _resident_bytes(pid)


def _unmapped_bytes(pids: Sequence[int]) -> int:
    """Return what is in memory files (memfd) and can't be among the pages that these processes have mapped."""
    files: dict[int, int] = {}
    shared = 0
    for pid in pids:
        with contextlib.suppress(OSError, IndexError):
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if str(descriptor.readlink()).startswith("/memfd:"):
                        status = descriptor.stat()
                        files[status.st_ino] = status.st_blocks * 512
            shared += int(Path(f"/proc/{pid}/statm").read_text().split()[2]) * _PAGE_BYTES
    return max(0, sum(files.values()) - shared) if files else 0


def _available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return _RESERVE_BYTES


def _is_ready(pidfd: int, timeout_s: float) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(pidfd, selectors.EVENT_READ)
        return bool(selector.select(timeout_s))


def _send(pidfd: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, number)
