"""A child of a warm parent, forked before its step is known or for it: it runs one step, or none."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Sequence

from executor.cgroup import Cgroup
from executor.pipes import Pipes
from executor.processes import cpu_s, descendants, is_ready, send
from executor.stops import cancelled
from executor.warm_failed import WarmFailed
from executor.warm_protocol import GO, HERE, MOST_DESCRIPTORS, READY

_ANSWER_S = 30
"""A parent may be in the middle of an import when it is asked."""
_ASK_EVERY_S = 0.25
_KILL_S = 10.0
_CREDENTIALS = struct.Struct("3i")


class WarmSeat:
    """Two processes in namespaces and control groups of their own: process 1, and what becomes the step.

    Until :meth:`begin` they have nothing of any step. Whoever takes one closes it.
    """

    def __init__(self, ask: Callable[[Sequence[int]], object], should_stop: Callable[[], bool] | None) -> None:
        """Have ``ask`` fork it. Raises WarmFailed, and Cancelled when ``should_stop`` said so meanwhile."""
        self.inherited_bytes = 0
        self.exit_code = 128 + signal.SIGKILL
        self.vanished = False
        """Whether it ended without having been told to and without saying how: its parent died, most likely."""
        self._cpu_s: float | None = None
        self._is_open = False
        self.cgroup, self.pipes = Cgroup.create(), Pipes()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.report = self._socket.fileno()
        try:
            with theirs:
                self._ask(ask, theirs.fileno())
            self._meet(should_stop)
        except BaseException:
            self.close()
            raise

    def _ask(self, ask: Callable[[Sequence[int]], object], theirs: int) -> None:
        entrances: list[int] = []
        try:
            entrances += (os.open(group, os.O_WRONLY | os.O_CLOEXEC) for group in self.cgroup.entrances)
            ask([theirs, self.pipes.log[1], self.pipes.progress[1], *entrances])
        except OSError as error:
            raise WarmFailed(f"it can't be asked ({error.strerror or error})") from None
        finally:
            for descriptor in entrances:
                os.close(descriptor)
        self.pipes.close_inherited()

    def _meet(self, should_stop: Callable[[], bool] | None) -> None:
        message, pid = self._answer(should_stop)
        if message != HERE:
            raise _failure(message)
        # The child waits for GO: its pid is its own until then. That it answers afterwards shows that the descriptor
        # was its, too.
        self.ended, self.pid, self._is_open = os.pidfd_open(pid), pid, True
        self._tell(GO)

    def begin(self, request: dict[str, object], mounts: Sequence[int], inherited_bytes: int) -> None:
        """Become the step of ``request``, with its files in ``mounts``. Raises WarmFailed."""
        if 1 + len(mounts) > MOST_DESCRIPTORS:
            raise WarmFailed("the step has too many inputs")
        document = self.pipes.data(json.dumps(request).encode())
        self._tell(GO, document, *mounts)
        self.pipes.close_inherited()
        self.inherited_bytes = inherited_bytes
        self._socket.setblocking(False)

    @property
    def waits(self) -> bool:
        """Whether it can still begin."""
        return not is_ready(self.ended, 0)

    def hear(self) -> bool:
        """Read how the step ended, when it has; return False when nothing more comes."""
        try:
            message, _ = receive(self._socket)
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
        self._socket.setblocking(False)
        self.hear()
        self.vanished = by_itself and told is None and self._cpu_s is None
        os.close(self.ended)
        self._is_open = False
        return self._cpu_s

    def close(self) -> None:
        """End it unless it has ended, and leave nothing of it."""
        if self._is_open:
            self.end()
        self._socket.close()
        self.pipes.close()
        self.cgroup.remove()

    def abandon(self) -> None:
        """Close this process's copies of its descriptors; it belongs to the process that this one was forked from."""
        os.close(self.ended)
        self._socket.close()
        self.pipes.close()

    def _tell(self, message: bytes, *descriptors: int) -> None:
        try:
            socket.send_fds(self._socket, [message], descriptors)
        except OSError as error:
            raise WarmFailed(f"its child can't be told ({error.strerror or error})") from None
        answer, _ = self._answer(None)
        if answer != READY:
            raise _failure(answer)

    def _answer(self, should_stop: Callable[[], bool] | None) -> tuple[bytes, int]:
        deadline = time.monotonic() + _ANSWER_S
        while time.monotonic() < deadline:
            if is_ready(self.report, _ASK_EVERY_S):
                return receive(self._socket)
            if should_stop is not None and should_stop():
                raise cancelled()
        raise WarmFailed(f"it did not answer within {_ANSWER_S} s")


def receive(channel: socket.socket) -> tuple[bytes, int]:
    """Return the next message and the pid of who sent it, as this process counts."""
    message, ancillary, _, _ = channel.recvmsg(4096, socket.CMSG_SPACE(_CREDENTIALS.size), socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            return message, int(_CREDENTIALS.unpack(data)[0])
    return message, 0


def reason(message: bytes) -> str:
    """Return what a message says went wrong, or nothing."""
    with contextlib.suppress(ValueError):
        told = json.loads(message)
        if isinstance(told, dict):
            return str(next(iter(told.values()), ""))[:300]
    return ""


def _failure(message: bytes) -> WarmFailed:
    return WarmFailed(reason(message) or "its child ended at once")
