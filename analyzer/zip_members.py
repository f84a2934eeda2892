"""ZipMembers: list and read a zip's members with every size bounded before anything is unpacked."""

from __future__ import annotations

import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from analyzer.draft import clean
from schemas.errors import LimitExceeded, ModelFailed

MAX_MEMBERS = 100_000
MAX_DIRECTORY_BYTES = 64 << 20
_END = b"PK\x05\x06"
_BROKEN = (
    zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error, lzma.LZMAError, OSError,
    struct.error, ValueError, OverflowError, IndexError, KeyError, AttributeError,
)  # fmt: skip


class NoCentralDirectory(ModelFailed):
    """The zip has local headers and no end: it was cut off."""


def first_member(head: bytes) -> str:
    """Return the name in the first local header, '' when there is none; works on truncated zips."""
    if len(head) < 30 or head[:4] != b"PK\x03\x04":
        return ""
    size = int.from_bytes(head[26:28], "little")
    return head[30 : 30 + size].decode("utf-8", "replace")


def _check_end(path: Path) -> None:
    """Refuse a missing or oversized directory before ``zipfile`` reads it whole."""
    size = path.stat().st_size
    with path.open("rb") as handle:
        handle.seek(max(0, size - (1 << 16) - 42))
        tail = handle.read()
    at = tail.rfind(_END)
    if at < 0 or len(tail) - at < 22:
        raise NoCentralDirectory("Its central directory is missing.")
    members, directory_bytes, directory_at, comment = struct.unpack_from("<HIIH", tail, at + 10)
    position = max(0, size - (1 << 16) - 42) + at
    ends_here = at + 22 + comment == len(tail)
    if not ends_here and directory_at != 0xFFFFFFFF and directory_at + directory_bytes not in (position, position - 76):
        # The end record of a zip that is a member of this one, whose own end is gone.
        raise NoCentralDirectory("Its central directory is missing.")
    if at >= 20 and tail[at - 20 : at - 16] == b"PK\x06\x07":
        end64 = struct.unpack_from("<Q", tail, at - 12)[0]
        with path.open("rb") as handle:
            handle.seek(min(end64, size))
            record = handle.read(56)
        if len(record) == 56 and record[:4] == b"PK\x06\x06":
            members, directory_bytes = struct.unpack_from("<QQ", record, 32)
    if members > MAX_MEMBERS or directory_bytes > MAX_DIRECTORY_BYTES:
        raise LimitExceeded(
            f"This zip announces {members} members in {directory_bytes} bytes of directory, more than any model has.",
            hint="Save the model again with its own framework.",
            limit=MAX_MEMBERS,
            actual=int(members),
        )


class ZipMembers:
    """The members of an open zip by name; of members of one name, the last, as every zip reader takes."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self.sizes = {info.filename: info.file_size for info in archive.infolist()[:MAX_MEMBERS]}
        self.names = tuple(self.sizes)

    def read(self, name: str, limit: int) -> bytes:
        """Return a member's bytes. Raises ModelFailed when it is broken, LimitExceeded above ``limit`` bytes."""
        try:
            with self._archive.open(name) as member:
                data = member.read(limit + 1)
        except _BROKEN as error:
            raise ModelFailed(
                f"Member {clean(name)!r} of this archive can't be read: {clean(str(error) or type(error).__name__)}.",
                hint="Save the model again and copy it again.",
            ) from None
        if len(data) > limit:
            raise LimitExceeded(
                f"Member {clean(name)!r} of this archive unpacks to more than {limit} bytes.",
                hint="Save the model again with its own framework.",
                limit=limit,
                actual=self.sizes.get(name, limit),
            )
        return data


@contextmanager
def open_zip(path: Path) -> Iterator[ZipMembers]:
    """Yield the members of the zip at ``path``. Raises NoCentralDirectory when cut off, ModelFailed when broken."""
    _check_end(path)
    try:
        archive = zipfile.ZipFile(path)
    except _BROKEN as error:
        raise ModelFailed(
            f"This file is a broken zip archive: {clean(str(error) or type(error).__name__)}.",
            hint="Save the model again and copy it again.",
        ) from None
    with archive:
        yield ZipMembers(archive)
