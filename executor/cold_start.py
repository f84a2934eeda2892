"""A sandbox that is a program of its own: started, met, and ended for certain."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from executor.cgroup import Cgroup
from executor.pipes import READ_BYTES, Pipes
from executor.processes import children, descendants, is_ready, send, session

_GRACE_S = 2.0
_PR_SET_CHILD_SUBREAPER = 36
_DIGITS = range(3, 10)
"""The descriptors that a shell can name."""

_LAUNCH = """exec {owner}<&0 </dev/null
(read -r _ || {{
  passes=100 groups=$1; shift
  while [ $passes -gt 0 ] && [ $groups -gt 0 ] && read -r _ <"$1"; do
    while read -r pid; do kill -KILL "$pid"; done <"$1"
    passes=$((passes - 1))
  done
  kill -KILL 0
}}) <&{owner} {owner}<&- >/dev/null 2>&1 &
exec {owner}<&-
groups=$1; shift
while [ $groups -gt 0 ]; do echo $$ >"$1" || exit 125; shift; groups=$((groups - 1)); done
exec "$@"
"""
"""Joins the control groups named by the first arguments, then becomes the rest.

A shell does it because code between fork and exec of a threaded Python process is not safe, and the groups must be
joined before the first byte runs. What it leaves beside the rest waits until its owner has gone, however that ended,
and then ends all in the first control group, and this process group: bubblewrap's ``--die-with-parent`` holds only once
all of it has been set up, and whose launcher was killed before that waits for it for ever, or runs on, in a session of
its own by then that no signal to this one reaches. Without a control group one start in some hundreds may be left so.
"""
_adopters, _adopters_lock = 0, threading.Lock()


class ColdStart:
    """One program from its start to its end. With bubblewrap it names its process 1, whose end is the end of all.

    Without, the process group and all descendants found at the time are killed.
    """

    def __init__(self, argv: Sequence[str], pipes: Pipes, cgroup: Cgroup, cwd: Path) -> None:
        script = _LAUNCH.format(owner=min({*_DIGITS} - {*pipes.inherited}))
        watched, self._owning = os.pipe()  # the kernel closes the second end with this process
        try:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", script, "sh", str(len(cgroup.entrances)), *map(str, cgroup.entrances), *argv],
                stdin=watched,
                stdout=pipes.log[1],
                stderr=pipes.log[1],
                pass_fds=pipes.inherited,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
                cwd=cwd,
                start_new_session=True,
            )
        except BaseException:
            os.close(self._owning)
            raise
        finally:
            os.close(watched)
        self._cgroup = cgroup
        self.ended = os.pidfd_open(self._process.pid)
        self.report = pipes.info[0]
        os.set_blocking(self.report, False)
        self._info = b""
        self._init: int | None = None  # pidfd of process 1 of the sandbox
        self._init_pid: int | None = None
        self.exit_code, self.inherited_bytes = -1, 0

    @property
    def pid(self) -> int:
        """Process 1 of the sandbox as the host counts, or what will start it."""
        return self._init_pid or self._process.pid

    def hear(self) -> bool:
        """Read what bubblewrap says of its process 1; return False when it says no more."""
        while True:
            try:
                chunk = os.read(self.report, READ_BYTES)
            except BlockingIOError:
                return True
            if not chunk:
                return False
            self._info += chunk
            with contextlib.suppress(ValueError, KeyError, ProcessLookupError):
                pid = int(json.loads(self._info)["child-pid"])
                self._init, self._init_pid = os.pidfd_open(pid), pid

    def end(self) -> float:
        """Kill what still runs, wait until all of it is gone, and return the CPU seconds it used."""
        self.hear()
        running = not is_ready(self.ended, 0)
        if running and self._init is not None:
            # Process 1 takes all of its namespace along; bwrap then reaps it and ends by itself, with its usage.
            send(self._init, signal.SIGKILL)
            running = not is_ready(self.ended, _GRACE_S)
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
        self.hear()
        for pid in children():
            if pid == self._init_pid or session(pid) == self._process.pid:
                os.kill(pid, signal.SIGKILL)
                with contextlib.suppress(ChildProcessError):
                    usage = os.wait4(pid, 0)[2]
                    cpu_s += usage.ru_utime + usage.ru_stime
        if self._init is not None:
            is_ready(self._init, _GRACE_S)
            os.close(self._init)
        os.close(self.ended)
        os.close(self._owning)
        self._cgroup.kill()
        return cpu_s

    def abandon(self) -> None:
        """Close this process's copies of its descriptors; it belongs to the process that this one was forked from."""
        os.close(self.ended)
        os.close(self._owning)

    def _kill_tree(self) -> None:
        pids = list(descendants(self._process.pid))
        for pid in [self._process.pid, *pids]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._cgroup.kill()


@contextlib.contextmanager
def adopting() -> Iterator[None]:
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
