"""A process of a toolchain's interpreter with its imports done, in a sandbox of its own, that forks for each step."""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from executor.cgroup import Cgroup
from executor.cold_start import ColdStart, adopting
from executor.pipes import READ_BYTES, Pipes
from executor.processes import anonymous_bytes, is_ready, send
from executor.warm_failed import WarmFailed
from executor.warm_protocol import IDLE, READY
from executor.warm_seat import WarmSeat, reason, receive

log = logging.getLogger(__name__)
_START_S = 90


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
        self._waiting: WarmSeat | None = None
        self._keeps = True
        self._hearing = threading.Lock()
        self._lock = threading.Lock()
        """Holds while the descriptor is used, whose number may be another process's as soon as it is closed, and while
        the child that waits changes hands."""
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
                    message, pid = receive(self._control)
                    if message == READY:
                        self._pid, self._interpreter = pid, os.pidfd_open(pid)
                        return
                    raise WarmFailed(reason(message) or self._last_words(), lasting=True)
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
        waiting = self._waiting
        beside = waiting.cgroup.memory_bytes() if waiting is not None else None
        return (anonymous_bytes(self._pid) if self._pid else 0) + (beside or 0)

    def pause(self) -> None:
        """Stop it until :meth:`resume`: what it still imports must not take time from a measurement."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def seat(self, should_stop: Callable[[], bool] | None) -> WarmSeat:
        """Return a child that has had no step: the one that waits, or a new one. Raises WarmFailed and Cancelled."""
        self.last_used = time.monotonic()
        with self._lock:
            waiting, self._waiting = self._waiting, None
        if waiting is not None:
            if waiting.waits:
                return waiting
            waiting.close()
        return self._forked(should_stop)

    @property
    def lacks_seat(self) -> bool:
        """Whether a child should wait and none does: all is imported that the child is to inherit."""
        return not self.imports and self._waiting is None and self._keeps and self.alive

    def keep_seat(self) -> None:
        """Have a child wait, so that the next step need not wait for its fork."""
        try:
            seat = self._forked(None)
        except (WarmFailed, OSError) as error:  # the steps tell why they start cold; one that forks later is no fault
            log.debug("no child of a warm parent waits: %s", error)
            self._keeps = False
            return
        with self._lock:
            self._waiting = seat

    def _forked(self, should_stop: Callable[[], bool] | None) -> WarmSeat:
        try:
            return WarmSeat(lambda sent: socket.send_fds(self._control, [b"fork"], sent), should_stop)
        except WarmFailed:
            self._hear()
            if self._why:
                raise WarmFailed(self._why, lasting=True) from None
            raise

    def _hear(self) -> None:
        """Take what the parent has said of itself since it was ready: that it is idle, or why it ends."""
        with self._hearing, contextlib.suppress(OSError, ValueError):  # it may be closed
            while is_ready(self._control.fileno(), 0) and (message := receive(self._control)[0]):
                self._idle = self._idle or message == IDLE
                self._why = self._why or reason(message)

    def end(self) -> None:
        """End it, with every step that it has forked; return when nothing of it is left."""
        if self._waiting is not None:
            self._waiting.close()
        self._control.close()
        with adopting():
            self._process.end()
        self._close()

    def abandon(self) -> None:
        """Close this process's copies of its descriptors; it belongs to the process that this one was forked from."""
        if self._waiting is not None:
            self._waiting.abandon()
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
