"""The pipes of one run."""

from __future__ import annotations

import os

READ_BYTES = 1 << 16


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
