"""A process of a toolchain's interpreter with its imports done, in a sandbox of its own, that forks for each step."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from executor.cgroup import Cgroup
from executor.cold_start import ColdStart, adopting
from executor.pipes import READ_BYTES, Pipes
from executor.processes import anonymous_bytes, cpu_s, descendants, is_ready, send
from executor.warm_protocol import FIRST_GROUP, GO, HERE, IDLE, MOST_DESCRIPTORS, READY

_START_S = 90
_ANSWER_S = 30
"""A parent may be in the middle of an import when it is asked."""
_ASK_EVERY_S = 0.25
_KILL_S = 10.0
_CREDENTIALS = struct.Struct("3i")


class WarmFailed(Exception):
    """A warm start did not come about. ``lasting`` when trying again is no use."""

    def __init__(self, why: str, *, lasting: bool = False) -> None:
        super().__init__(why)
        self.lasting = lasting


class WarmParent:
    """One warm parent from its start to its end. Steps may be begun from several threads."""

    def __init__(self, argv: Callable[[int, int, Pipes], Sequence[str]], system_calls: bytes) -> None:
        """Start it. ``argv`` makes its command line of the descriptors of its socket and of its filter."""
        self._pipes = Pipes()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.last_used = time.monotonic()
        self._given_up = os.eventfd(0)
        self._pid, self._interpreter = 0, -1  # of the process that forks, and a descriptor of it
        self._idle, self._why = False, ""
        self._hearing = threading.Lock()
        self._lock = threading.Lock()
        """Holds while the descriptor is used: its number may be another process's as soon as it is closed."""
        with theirs:
            self._pipes.inherited.append(theirs.fileno())
            command = argv(theirs.fileno(), self._pipes.data(system_calls), self._pipes)
            self._process = ColdStart(command, self._pipes, Cgroup("", {}), Path("/"))
            self._pipes.inherited.remove(theirs.fileno())
            self._pipes.close_inherited()

    def wait(self) -> None:
        """Wait until it has imported what every step needs. Raises WarmFailed."""
        deadline = time.monotonic() + _START_S
        with selectors.DefaultSelector() as selector:
            for descriptor in (self._control.fileno(), self._process.ended, self._process.report, self._given_up):
                selector.register(descriptor, selectors.EVENT_READ)
            while (left_s := deadline - time.monotonic()) > 0:
                for key, _ in selector.select(left_s):
                    if key.fd == self._given_up:
                        raise WarmFailed("nobody waits for it any more")
                    if key.fd == self._process.report:
                        if not self._process.hear():
                            selector.unregister(key.fd)
                        continue
                    message, pid = _receive(self._control)
                    if message == READY:
                        self._pid, self._interpreter = pid, os.pidfd_open(pid)
                        return
                    raise WarmFailed(_reason(message) or self._last_words(), lasting=True)
        raise WarmFailed(f"it was not ready after {_START_S} s", lasting=True)

    def give_up(self) -> None:
        """Have :meth:`wait` fail at once; from any thread."""
        os.eventfd_write(self._given_up, 1)

    @property
    def alive(self) -> bool:
        """Whether it can still be asked."""
        return not is_ready(self._process.ended, 0)

    @property
    def imports(self) -> bool:
        """Whether it has not imported all that it will while it waits."""
        self._hear()
        return not self._idle and self.alive

    def memory_bytes(self) -> int:
        """Return the memory that it holds for itself; code in files is shared with whoever else runs it."""
        return anonymous_bytes(self._pid) if self._pid else 0

    def pause(self) -> None:
        """Stop it until :meth:`resume`: what it still imports must not take time from a measurement."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def begin(
        self,
        request: dict[str, object],
        pipes: Pipes,
        groups: Sequence[Path],
        mounts: Sequence[int],
        should_stop: Callable[[], bool] | None,
    ) -> WarmStart | None:
        """Fork a child that shuts itself in and becomes the step; None when it was not to be. Raises WarmFailed."""
        if FIRST_GROUP + len(groups) + len(mounts) > MOST_DESCRIPTORS:
            raise WarmFailed("the step has too many inputs")
        report, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        report.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        entrances: list[int] = []
        try:
            with theirs:
                entrances += (os.open(group, os.O_WRONLY | os.O_CLOEXEC) for group in groups)
                document = pipes.data(json.dumps(request).encode())
                sent = [document, theirs.fileno(), pipes.log[1], pipes.progress[1], *entrances, *mounts]
                self.last_used = time.monotonic()
                socket.send_fds(self._control, [b"fork"], sent)
            pipes.close_inherited()
            return self._meet(report, should_stop)
        except OSError as error:
            report.close()
            raise WarmFailed(f"it can't be asked ({error.strerror or error})") from None
        except BaseException:
            report.close()
            raise
        finally:
            for descriptor in entrances:
                os.close(descriptor)

    def _meet(self, report: socket.socket, should_stop: Callable[[], bool] | None) -> WarmStart | None:
        message, pid = self._answer(report, should_stop)
        if message is None:
            report.close()
            return None
        if message != HERE:
            raise self._failure(message)
        # The child waits for GO: its pid is its own until then. That it answers afterwards shows that the descriptor
        # was its, too.
        init = os.pidfd_open(pid)
        try:
            report.send(GO)
            message, _ = self._answer(report, None)
            if message != READY:
                raise self._failure(message or b"")
        except BaseException:
            send(init, signal.SIGKILL)
            os.close(init)
            raise
        return WarmStart(report, init, pid, self.memory_bytes())

    def _answer(self, report: socket.socket, should_stop: Callable[[], bool] | None) -> tuple[bytes | None, int]:
        deadline = time.monotonic() + _ANSWER_S
        while time.monotonic() < deadline:
            if is_ready(report.fileno(), _ASK_EVERY_S):
                return _receive(report)
            if should_stop is not None and should_stop():
                return None, 0
        raise WarmFailed(f"it did not answer within {_ANSWER_S} s")

    def _failure(self, message: bytes) -> WarmFailed:
        """Return why there is no child: what it said, or what the parent said, which then is so for good."""
        if reason := _reason(message):
            return WarmFailed(reason)
        self._hear()
        return WarmFailed(self._why, lasting=True) if self._why else WarmFailed("its child ended at once")

    def _hear(self) -> None:
        """Take what the parent has said of itself since it was ready: that it is idle, or why it ends."""
        with self._hearing, contextlib.suppress(OSError, ValueError):  # it may be closed
            while is_ready(self._control.fileno(), 0) and (message := _receive(self._control)[0]):
                self._idle = self._idle or message == IDLE
                self._why = self._why or _reason(message)

    def end(self) -> None:
        """End it, with every step that it has forked; return when nothing of it is left."""
        self._control.close()
        with adopting():
            self._process.end()
        self._close()

    def abandon(self) -> None:
        """Close this process's copies of its descriptors; it belongs to the process that this one was forked from."""
        self._control.close()
        self._process.abandon()
        self._close()

    def _signal(self, number: signal.Signals) -> None:
        with self._lock:
            if self._interpreter >= 0:
                send(self._interpreter, number)

    def _close(self) -> None:
        with self._lock:
            if self._interpreter >= 0:
                os.close(self._interpreter)
            self._interpreter = -1
        os.close(self._given_up)
        self._pipes.close()

    def _last_words(self) -> str:
        os.set_blocking(self._pipes.log[0], False)
        with contextlib.suppress(BlockingIOError):
            words = os.read(self._pipes.log[0], READ_BYTES).decode(errors="replace").strip().splitlines()
            if words:
                return f"it ended: {words[-1][:300]}"
        return "it ended before it was ready"


class WarmStart:
    """A step in a child of a warm parent, as its host sees it: process 1 of its sandbox and what that reports."""

    def __init__(self, report: socket.socket, init: int, pid: int, inherited_bytes: int) -> None:
        self._socket, self.ended, self.pid = report, init, pid
        self.inherited_bytes = inherited_bytes
        self.report = report.fileno()
        self.exit_code = 128 + signal.SIGKILL
        self.vanished = False
        """Whether it ended without having been told to and without saying how: its parent died, most likely."""
        self._cpu_s: float | None = None
        report.setblocking(False)

    def hear(self) -> bool:
        """Read how the step ended, when it has; return False when nothing more comes."""
        try:
            message, _ = _receive(self._socket)
        except BlockingIOError:
            return True
        with contextlib.suppress(ValueError, KeyError, TypeError):
            told = json.loads(message)
            self.exit_code, self._cpu_s = int(told["exit"]), float(told["cpu_s"])
        return False

    def end(self) -> float | None:
        """Kill process 1, and with it all of its namespace, unless it has ended; return the CPU seconds used."""
        by_itself = is_ready(self.ended, 0)
        if not by_itself:
            self._cpu_s = cpu_s(descendants(self.pid))
            send(self.ended, signal.SIGKILL)
            is_ready(self.ended, _KILL_S)
        told = self._cpu_s
        self.hear()
        self.vanished = by_itself and told is None and self._cpu_s is None
        self._socket.close()
        os.close(self.ended)
        return self._cpu_s


def _receive(channel: socket.socket) -> tuple[bytes, int]:
    """Return the next message and the pid of who sent it, as this process counts."""
    message, ancillary, _, _ = channel.recvmsg(4096, socket.CMSG_SPACE(_CREDENTIALS.size), socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            return message, int(_CREDENTIALS.unpack(data)[0])
    return message, 0


def _reason(message: bytes) -> str:
    with contextlib.suppress(ValueError):
        told = json.loads(message)
        if isinstance(told, dict):
            return str(next(iter(told.values()), ""))[:300]
    return ""
