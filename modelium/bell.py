"""A bell beside the outbox: who has written into it wakes the relay, which otherwise looks a few times a second.

A datagram on a unix socket, lost without harm: what nobody heard is found at the next look.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
from pathlib import Path


def ring(path: Path) -> None:
    """Wake whoever waits at ``path``, if somebody does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, contextlib.suppress(OSError):
        sender.setblocking(False)
        sender.sendto(b"1", str(path))


class Bell:
    """The end that waits; one at a time for a path."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)

    def wait(self, timeout_s: float) -> None:
        """Return when it was rung since the last time, or after ``timeout_s``."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            selector.select(timeout_s)
        with contextlib.suppress(BlockingIOError):
            while self._socket.recv(16):
                pass

    def close(self) -> None:
        """Hear nothing any more."""
        self._socket.close()
