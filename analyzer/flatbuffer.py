"""A flatbuffer, read without its schema's code: tables, vectors, strings; every offset is checked before it is used."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

MAX_STRING_BYTES = 1 << 20
MAX_READS = 20_000_000
"""Numbers and items that are read of one file. Tables may share their parts, so a small file can pretend to be huge."""


class NotFlatbuffer(Exception):
    """An offset or a length leads out of the file."""


class Bytes(Protocol):
    """What is read: bytes or a memory map."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice, /) -> bytes: ...


class Source:
    """The bytes, and how much of them was read."""

    def __init__(self, data: Bytes) -> None:
        self.data, self.reads = data, 0

    def spend(self, reads: int) -> None:
        """Count reads. Raises NotFlatbuffer when they are more than any model's."""
        self.reads += reads
        if self.reads > MAX_READS:
            raise NotFlatbuffer

    def number(self, kind: str, at: int) -> int:
        """Return a number of struct's ``kind``. Raises NotFlatbuffer outside the file."""
        self.spend(1)
        size = struct.calcsize(kind)
        if at < 0 or at + size > len(self.data):
            raise NotFlatbuffer
        value: int = struct.unpack(kind, self.data[at : at + size])[0]
        return value


@dataclass(frozen=True)
class Table:
    """A table at ``at``. Fields are read by their number in the schema; an absent one is None or empty."""

    source: Source
    at: int

    def _field(self, number: int) -> int | None:
        vtable = self.at - self.source.number("<i", self.at)
        size = self.source.number("<H", vtable)
        place = 4 + 2 * number
        if place + 2 > size:
            return None
        offset = self.source.number("<H", vtable + place)
        return self.at + offset if offset else None

    def scalar(self, number: int, kind: str, default: int = 0) -> int:
        """Return a number of struct's ``kind``, such as '<i'."""
        at = self._field(number)
        return default if at is None else self.source.number(kind, at)

    def table(self, number: int) -> Table | None:
        """Return the table that a field points to."""
        at = self._field(number)
        return None if at is None else Table(self.source, at + self.source.number("<I", at))

    def _vector(self, number: int, item_bytes: int) -> tuple[int, int]:
        """Return where a vector's items start and how many there are."""
        at = self._field(number)
        if at is None:
            return 0, 0
        start = at + self.source.number("<I", at)
        count = self.source.number("<I", start)
        if start + 4 + count * item_bytes > len(self.source.data):
            raise NotFlatbuffer
        return start + 4, count

    def length(self, number: int, item_bytes: int = 1) -> int:
        """Return how many items a vector has."""
        return self._vector(number, item_bytes)[1]

    def bytes_of(self, number: int, limit: int) -> bytes:
        """Return the first bytes of a vector of bytes, at most ``limit``."""
        start, count = self._vector(number, 1)
        self.source.spend(min(count, limit) // 1024)
        return self.source.data[start : start + min(count, limit)]

    def numbers(self, number: int, kind: str) -> tuple[int, ...]:
        """Return a vector of numbers."""
        size = struct.calcsize(kind)
        start, count = self._vector(number, size)
        self.source.spend(count)
        return struct.unpack(f"<{count}{kind[-1]}", self.source.data[start : start + count * size])

    def string(self, number: int) -> str:
        """Return a string's first megabyte."""
        start, count = self._vector(number, 1)
        size = min(count, MAX_STRING_BYTES)
        self.source.spend(size // 16)
        return self.source.data[start : start + size].decode("utf-8", "replace")

    def strings(self, number: int) -> Iterator[str]:
        """Yield the strings of a vector of strings, each cut after a megabyte."""
        start, count = self._vector(number, 4)
        for at in range(start, start + 4 * count, 4):
            begin = at + self.source.number("<I", at)
            size = min(self.source.number("<I", begin), MAX_STRING_BYTES)
            self.source.spend(size // 16)
            yield self.source.data[begin + 4 : begin + 4 + size].decode("utf-8", "replace")

    def tables(self, number: int) -> Iterator[Table]:
        """Yield the tables of a vector of tables."""
        start, count = self._vector(number, 4)
        for at in range(start, start + 4 * count, 4):
            yield Table(self.source, at + self.source.number("<I", at))


def root(data: Bytes) -> Table:
    """Return the outermost table. Raises NotFlatbuffer when there can be none."""
    source = Source(data)
    return Table(source, source.number("<I", 0))
