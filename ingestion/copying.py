"""Copy open files and folders into a store's scratch folder, each file named by its sha256."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from ingestion.opening import check_name, open_entry, shown
from schemas.artifact import ArtifactFile
from schemas.errors import LimitExceeded, StillChanging

CHUNK_BYTES = 16 << 20
"""What is in memory at a time."""

_SYNCED_UNSEEN_BYTES = 256 << 20
"""Up to this size a file is written to the disk while it is hashed, for nothing where it is stored already."""


@dataclass(frozen=True)
class Copying:
    """Copies into ``scratch``; of what ``is_stored`` already, the copy is thrown away and need not reach the disk.

    With ``take`` a file is linked instead, where it can become a stored one.
    """

    scratch: Path
    max_files: int
    is_stored: Callable[[str], bool]
    take: bool = False

    def folder(
        self, fd: int, path: Path, skip: Callable[[str], bool] | None = None, prefix: str = ""
    ) -> Iterator[ArtifactFile]:
        """Copy every file below an open folder, but for what ``skip`` is told of and says True to."""
        before = os.fstat(fd)
        count = 0
        for name in sorted(os.listdir(fd)):
            relative = prefix + name
            if skip is not None and skip(relative):
                continue
            check_name(relative)
            inner = open_entry(fd, name, path / name)
            try:
                if stat.S_ISDIR(os.fstat(inner).st_mode):
                    found = self.folder(inner, path / name, skip, relative + "/")
                else:
                    found = iter((self.file(inner, relative, path / name),))
                for file in found:
                    count += 1
                    if count > self.max_files:
                        raise LimitExceeded(
                            f"{shown(path)} holds more than {self.max_files} files.",
                            hint="Drop the model's own folder, not a folder around it.",
                            limit=self.max_files,
                        )
                    yield file
            finally:
                os.close(inner)
        if os.fstat(fd).st_mtime_ns != before.st_mtime_ns:
            raise _still_changing(path)

    def file(self, fd: int, relative: str, path: Path) -> ArtifactFile:
        """Copy or take an open file. ``path`` is where it stands, for messages."""
        info = os.fstat(fd)
        mine = os.geteuid() in (0, info.st_uid)
        if self.take and mine and info.st_nlink == 1 and info.st_dev == self.scratch.stat().st_dev:
            return self._taken(fd, relative, info.st_size)
        return self._copied(fd, relative, path)

    def _taken(self, fd: int, relative: str, size_bytes: int) -> ArtifactFile:
        """Link an open file into ``scratch``, named by its sha256."""
        os.fchown(fd, os.geteuid(), os.getegid())
        os.fchmod(fd, 0o444)
        name = self._named(fd, size_bytes)
        if not (self.scratch / name).exists():
            # By the descriptor: what was hashed is what is linked, whatever stands under the path by now. Without a
            # folder's descriptor, which an absolute path needs none of, Python calls link(2), which follows nothing.
            os.link(f"/proc/self/fd/{fd}", self.scratch / name, src_dir_fd=fd, follow_symlinks=True)
        return ArtifactFile(path=relative, sha256=name, size_bytes=size_bytes)

    def _copied(self, fd: int, relative: str, path: Path) -> ArtifactFile:
        """Copy an open file; what is hashed is the copy."""
        before = os.fstat(fd)
        partial = self.scratch / "partial"
        with partial.open("w+b", buffering=0) as copy:
            # It may grow under our hands; without a bound a growing file would be read for ever.
            copied = _Copied(fd, copy.fileno(), before.st_size + 1)
            name = copied.sha256()
            after = os.fstat(fd)
            if (after.st_size, after.st_mtime_ns, copied.size_bytes) != (
                before.st_size,
                before.st_mtime_ns,
                after.st_size,
            ):
                raise _still_changing(path)
            os.fchmod(copy.fileno(), 0o444)
            if not copied.is_synced and not self.is_stored(name):
                os.fsync(copy.fileno())
        partial.replace(self.scratch / name)
        return ArtifactFile(path=relative, sha256=name, size_bytes=copied.size_bytes)

    def _named(self, fd: int, size_bytes: int) -> str:
        """Return the sha256 of an open file, which has reached the disk by then unless it is stored already."""
        if not _is_synced_unseen(size_bytes):
            name = _sha256_at_once(fd, size_bytes)
            if not self.is_stored(name):
                os.fsync(fd)
            return name
        with ThreadPoolExecutor(1) as beside:  # the disk and the processor at once
            synced = beside.submit(os.fsync, fd)
            name = _sha256_at_once(fd, size_bytes)
            synced.result()
            return name


class _Copied:
    """A copy of an open file, hashed piece by piece while the next one is copied, and then written to the disk."""

    def __init__(self, source: int, copy: int, most_bytes: int) -> None:
        self._source, self._copy, self._most_bytes = source, copy, most_bytes
        self.size_bytes, self.is_synced = 0, False

    def sha256(self) -> str:
        """Copy, and return the digest of the copy."""
        if self._most_bytes <= CHUNK_BYTES:
            return _sha256(self._copy, list(self._pieces()))
        ends: SimpleQueue[int | None] = SimpleQueue()
        with ThreadPoolExecutor(1) as beside:
            copied = beside.submit(self._tell, ends)
            name = _sha256(self._copy, iter(ends.get, None))
            copied.result()
            return name

    def _tell(self, ends: SimpleQueue[int | None]) -> None:
        try:
            for end in self._pieces():
                ends.put(end)
        finally:
            ends.put(None)
        if _is_synced_unseen(self.size_bytes):
            os.fsync(self._copy)
            self.is_synced = True

    def _pieces(self) -> Iterator[int]:
        """Copy, yielding after each piece how much there is; both share the blocks where the file system can."""
        source, copy = self._source, self._copy
        with contextlib.suppress(OSError):  # not between these two file systems, or not at all: the loop below does
            while count := os.copy_file_range(source, copy, min(CHUNK_BYTES, self._most_bytes - self.size_bytes)):
                self.size_bytes += count
                yield self.size_bytes
        while chunk := os.read(source, min(CHUNK_BYTES, self._most_bytes - self.size_bytes)):
            view = memoryview(chunk)
            while view:
                view = view[os.write(copy, view) :]
            self.size_bytes += len(chunk)
            yield self.size_bytes


def _is_synced_unseen(size_bytes: int) -> bool:
    return CHUNK_BYTES < size_bytes <= _SYNCED_UNSEEN_BYTES


def _sha256_at_once(fd: int, size_bytes: int) -> str:
    """Return the digest of a file that nobody writes any more: what is mapped need not be copied to be hashed."""
    if not size_bytes:
        return hashlib.sha256().hexdigest()
    with mmap.mmap(fd, size_bytes, prot=mmap.PROT_READ) as whole:
        return hashlib.sha256(whole).hexdigest()


def _sha256(fd: int, ends: Iterable[int]) -> str:
    """Return the digest of a file as far as the last of ``ends``, taking each when it comes.

    Few large reads: other threads of this process may be busy in Python.
    """
    digest, at, buffer = hashlib.sha256(), 0, memoryview(bytearray(1))
    for end in ends:
        if len(buffer) < min(CHUNK_BYTES, end - at):
            buffer = memoryview(bytearray(min(CHUNK_BYTES, end - at)))
        while count := os.preadv(fd, [buffer[: end - at]], at):
            digest.update(buffer[:count])
            at += count
    return digest.hexdigest()


def _still_changing(path: Path) -> StillChanging:
    return StillChanging(f"{shown(path)} changed while it was read.", hint="It is taken once its writer has finished.")
