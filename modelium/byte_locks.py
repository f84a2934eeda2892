"""Locks on single bytes of one file: a ledger that the kernel keeps, and settles when a holder dies.

Each instance is one holder with an open file description of its own (F_OFD_SETLK of Linux), so that threads of a
process exclude each other as processes do. Nothing is ever written: a byte is a ticket, a place or a unit of memory.
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path
from types import TracebackType
from typing import Self

_FLOCK = "hhqqi4x"  # struct flock where off_t has 64 bits: type, whence, start, length, pid


class ByteLocks:
    """One holder of locks in the file ``path``; closing it, or dying, gives all of them back."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def take(self, span: range) -> bool:
        """Lock every byte of ``span``, or none: False when another holds one of them. An empty span is taken."""
        if not span:
            return True
        try:
            self._call(fcntl.F_OFD_SETLK, fcntl.F_WRLCK, span)
        except BlockingIOError:
            return False
        return True

    def give(self, span: range) -> None:
        """Unlock what of ``span`` is locked by this holder."""
        if span:
            self._call(fcntl.F_OFD_SETLK, fcntl.F_UNLCK, span)

    def free(self, span: range) -> list[range]:
        """Return the parts of ``span`` that no other holder has, in order."""
        found, waiting = [], [span]
        while waiting:
            part = waiting.pop()
            if not part:
                continue
            kind, start, length = self._call(fcntl.F_OFD_GETLK, fcntl.F_WRLCK, part)
            if kind == fcntl.F_UNLCK:
                found.append(part)
                continue
            # The kernel names one lock in the way, not the first: look on both sides of it.
            stop = start + length if length else part.stop
            waiting += [range(part.start, min(start, part.stop)), range(max(stop, part.start), part.stop)]
        return sorted(found, key=lambda part: part.start)

    def close(self) -> None:
        """Give everything back."""
        os.close(self._descriptor)

    def _call(self, command: int, kind: int, span: range) -> tuple[int, int, int]:
        argument = struct.pack(_FLOCK, kind, os.SEEK_SET, span.start, len(span), 0)
        kind, _, start, length, _ = struct.unpack(_FLOCK, fcntl.fcntl(self._descriptor, command, argument))
        return kind, start, length

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
