"""What the host watches while a sandbox runs: the size of its workspace, its log, its progress."""

from __future__ import annotations

import codecs
import contextlib
import json
import math
import os
import stat
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from executor.collect import MAX_DEPTH, MORE_ROOM, clean
from schemas.errors import LimitExceeded, ModeliumError, StorageFull
from schemas.step_run import Limits

_SCAN_EVERY_S = 0.2
_SCAN_SHARE = 0.1
"""Scanning may take a tenth of the time: a slow scan makes the next one later."""
_RESERVE_BYTES = 512 << 20
"""Whatever hides from a scan (a deleted file that is only mapped) shows here, and killing its owner frees it."""
_BLOCK_BYTES = 512
_PROGRESS_LINE_BYTES = 4096
_PROGRESS_EVERY_S = 0.1
_MESSAGE_CHARACTERS = 200


class WorkspaceWatch:
    """Scans a writable folder now and then against the limits of a step.

    ``processes`` tells the pids of the step: what they hold open but have deleted counts too.
    """

    def __init__(self, out: Path, limits: Limits, processes: Callable[[], Iterable[int]] = tuple) -> None:
        self._out, self._limits, self._next_scan, self._processes = out, limits, 0.0, processes
        self._had_room = _free_bytes(out) > _RESERVE_BYTES

    def check(self) -> ModeliumError | None:
        """Return what is exceeded, or None; scans only when it is time to."""
        began = time.monotonic()
        if began < self._next_scan:
            return None
        found = self.scan()
        took = time.monotonic() - began
        self._next_scan = began + took + max(_SCAN_EVERY_S, took / _SCAN_SHARE)
        return found

    def scan(self) -> ModeliumError | None:
        """Return what is exceeded now, or None. Stops at the first excess, so that a flood costs no more than that."""
        limits, files, size_bytes = self._limits, 0, self._deleted_bytes()
        if self._had_room and _free_bytes(self._out) < _RESERVE_BYTES:
            return StorageFull(
                f"Less than {_RESERVE_BYTES >> 20} MiB are free on the disk with the workspaces.",
                hint="Free some space, or move the home folder to a larger disk.",
            )
        if size_bytes > limits.workspace_bytes:
            return _exceeded("bytes in files it deleted but holds open", limits.workspace_bytes, size_bytes)
        # Each level is held open while below it: a folder that is swapped for a link meanwhile is not followed.
        levels = [_Level(self._out, None)]
        try:
            while levels:
                entry = next(levels[-1].entries, None)
                if entry is None:
                    levels.pop().close()
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                    files += 1
                    size_bytes += status.st_blocks * _BLOCK_BYTES
                    if files > limits.workspace_files:
                        return _exceeded("files in its workspace", limits.workspace_files, files)
                    if size_bytes > limits.workspace_bytes:
                        return _exceeded("bytes in its workspace", limits.workspace_bytes, size_bytes)
                    if stat.S_ISDIR(status.st_mode):
                        if len(levels) >= MAX_DEPTH:
                            return _exceeded("levels of folders", MAX_DEPTH, len(levels) + 1)
                        levels.append(_Level(entry.name, levels[-1].descriptor))
                except OSError:
                    continue  # it vanished, or closed itself to its own user
        finally:
            for level in levels:
                level.close()
        return None

    def _deleted_bytes(self) -> int:
        device, found = self._out.stat().st_dev, {}
        for pid in self._processes():
            with contextlib.suppress(OSError):
                for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                    with contextlib.suppress(OSError):
                        status = descriptor.stat()
                        if status.st_nlink == 0 and status.st_dev == device and stat.S_ISREG(status.st_mode):
                            found[status.st_ino] = status.st_blocks * _BLOCK_BYTES
        return sum(found.values())


class _Level:
    """One folder on the way down, open."""

    def __init__(self, name: str | Path, parent: int | None) -> None:
        self.descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
        try:
            self.entries = os.scandir(self.descriptor)
        except OSError:
            os.close(self.descriptor)
            raise

    def close(self) -> None:
        self.entries.close()
        os.close(self.descriptor)


class Log:
    """Collects the text of a sandbox up to a limit and passes it on; what comes after is counted and dropped."""

    def __init__(self, limit_bytes: int, on_text: Callable[[str], None] | None) -> None:
        self._room, self._limit, self._on_text = limit_bytes, limit_bytes, on_text
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._parts: list[str] = []
        self._dropped = 0

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes."""
        kept, self._dropped = chunk[: self._room], self._dropped + max(0, len(chunk) - self._room)
        self._room -= len(kept)
        self._add(self._decoder.decode(kept))

    def finish(self) -> str:
        """Return the whole text; nothing may be fed afterwards."""
        self._add(self._decoder.decode(b"", final=True))
        if self._dropped:
            self._add(f"\n[The log was cut at {self._limit} bytes; {self._dropped} more were dropped.]\n")
        return "".join(self._parts)

    def _add(self, text: str) -> None:
        if text:
            text = clean(text)
            self._parts.append(text)
            if self._on_text is not None:
                self._on_text(text)


class Progress:
    """Reads progress lines, one JSON object each; whatever is not one is ignored."""

    def __init__(self, on_progress: Callable[[float, str], None] | None) -> None:
        self._on_progress = on_progress
        self._buffer = b""
        self._skipping = False
        self._pending: tuple[float, str] | None = None
        self._next_report = 0.0

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes."""
        *lines, rest = (self._buffer + chunk).split(b"\n")
        for line in lines[-8:]:  # only the newest counts; a flood is not worth parsing
            if not self._skipping:
                self._pending = _progress(line) or self._pending
            self._skipping = False
        if len(rest) > _PROGRESS_LINE_BYTES:
            rest, self._skipping = b"", True
        self._buffer = rest
        self.flush()

    def flush(self, final: bool = False) -> None:
        """Report the newest line unless one was reported a moment ago."""
        now = time.monotonic()
        if self._pending is not None and self._on_progress is not None and (final or now >= self._next_report):
            self._next_report = now + _PROGRESS_EVERY_S
            pending, self._pending = self._pending, None
            self._on_progress(*pending)


def _progress(line: bytes) -> tuple[float, str] | None:
    if len(line) > _PROGRESS_LINE_BYTES:
        return None
    try:
        document = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or document.keys() != {"fraction", "message"}:
        return None
    fraction, message = document["fraction"], document["message"]
    if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not isinstance(message, str):
        return None
    if not math.isfinite(fraction) or not 0 <= fraction <= 1:
        return None
    return float(fraction), clean(message[:_MESSAGE_CHARACTERS]).replace("\n", " ")


def _free_bytes(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def _exceeded(what: str, limit: int, actual: int) -> ModeliumError:
    return LimitExceeded(
        f"The step wrote too much: {actual} {what}, {limit} are allowed.",
        hint=MORE_ROOM if what.startswith("bytes") else "No step of ours needs as many; no setting allows more.",
        limit=limit,
        actual=actual,
    )
