"""Takes progress out of a log that carries both."""

from __future__ import annotations

from executor.watch import Log, Progress

_HELD_BYTES = 8192
"""An unfinished line is held back up to here, since its end may show that it is none of the log's."""


class MarkedLog:
    """A log in which whatever follows ``mark`` on a line is progress; the mark is as good as its randomness.

    Code in the sandbox knows the mark, and could say the same through a descriptor of its own.
    """

    def __init__(self, mark: str, log: Log, progress: Progress) -> None:
        self._mark, self._log, self._progress = mark.encode(), log, progress
        self._rest = b""

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes."""
        *lines, rest = (self._rest + chunk).split(b"\n")
        kept = b"".join(self._without_progress(line + b"\n") for line in lines)
        if len(rest) > _HELD_BYTES:
            kept, rest = kept + rest, b""
        self._rest = rest
        if kept:
            self._log.feed(kept)

    def flush(self) -> None:
        """Report the newest progress, if it is time to."""
        self._progress.flush()

    def finish(self) -> str:
        """Return the whole log; nothing may be fed afterwards."""
        self._log.feed(self._without_progress(self._rest))
        self._progress.flush(final=True)
        return self._log.finish()

    def _without_progress(self, line: bytes) -> bytes:
        before, mark, after = line.partition(self._mark)
        if mark:
            self._progress.feed(after if after.endswith(b"\n") else after + b"\n")
        return before
