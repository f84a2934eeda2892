"""UBJSON, the binary JSON of XGBoost models: read without recursion bombs; long arrays of numbers are stepped over."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO

from schemas.errors import LimitExceeded, ModelFailed

MAX_DEPTH = 64
MAX_VALUES = 4_000_000
_MAX_TEXT = 64 << 20
_KEPT_NUMBERS = 64
"""Numbers of a typed array that are read; of longer ones only the length is told."""
_NUMBERS = {b"i": ">b", b"U": ">B", b"I": ">h", b"l": ">i", b"L": ">q", b"d": ">f", b"D": ">d"}
_CONSTANTS: dict[bytes, bool | None] = {b"T": True, b"F": False, b"Z": None}


@dataclass(frozen=True)
class NumberArray:
    """A typed array: how many numbers it has, and the first of them."""

    length: int
    first: tuple[int | float, ...]


Value = dict[str, "Value"] | list["Value"] | NumberArray | str | int | float | bool | None


class BrokenUbjson(ModelFailed):
    """The bytes are no UBJSON, or end too early."""


def read_ubjson(handle: BinaryIO, size_bytes: int) -> Value:
    """Return the value that ``handle`` holds. Raises BrokenUbjson for nonsense, LimitExceeded for too much of it."""
    return _Reader(handle, size_bytes).value(0)


class _Reader:
    def __init__(self, handle: BinaryIO, size_bytes: int) -> None:
        self.handle, self.size_bytes, self.values = handle, size_bytes, 0

    def take(self, number: int) -> bytes:
        if number < 0 or number > self.size_bytes - self.handle.tell():
            raise BrokenUbjson(
                f"This file is truncated: at byte {self.handle.tell()} it announces {number} bytes more than it has.",
                hint="Copy it again and compare the size with the source's.",
            )
        return self.handle.read(number)

    def value(self, depth: int, marker: bytes = b"") -> Value:
        self.values += 1
        if depth > MAX_DEPTH or self.values > MAX_VALUES:
            what = f"nests deeper than {MAX_DEPTH} levels" if depth > MAX_DEPTH else f"holds over {MAX_VALUES} values"
            raise LimitExceeded(f"This UBJSON file {what}.", hint="Save the model again as JSON, or as fewer trees.")
        marker = marker or self.marker()
        if marker in _NUMBERS:
            form = _NUMBERS[marker]
            number: int | float = struct.unpack(form, self.take(struct.calcsize(form)))[0]
            return number
        if marker in _CONSTANTS:
            return _CONSTANTS[marker]
        if marker == b"C":
            return self.take(1).decode("latin-1")
        if marker in (b"S", b"H"):
            return self.text()
        if marker == b"[":
            return self.array(depth)
        if marker == b"{":
            return self.object(depth)
        raise BrokenUbjson(
            f"This file is no readable UBJSON: byte {self.handle.tell() - 1} is {marker!r}.",
            hint="Save the model again.",
        )

    def marker(self) -> bytes:
        found = self.take(1)
        while found == b"N":
            found = self.take(1)
        return found

    def count(self) -> int:
        found = self.value(0)
        if isinstance(found, bool) or not isinstance(found, int) or found < 0:
            raise BrokenUbjson("This file is no readable UBJSON: a length is no number.", hint="Save the model again.")
        return found

    def text(self) -> str:
        length = self.count()
        if length > _MAX_TEXT:
            raise LimitExceeded(f"This UBJSON file holds a text of {length} bytes.", hint="Save the model again.")
        return self.take(length).decode("utf-8", "replace")

    def kind_and_count(self) -> tuple[bytes, int | None, bytes]:
        """Return the type and the number of a container's values where it states them, and the marker read beyond."""
        following, kind, length = self.marker(), b"", None
        if following == b"$":
            kind, following = self.take(1), self.marker()
        if following == b"#":
            length, following = self.count(), b""
        elif kind:
            raise BrokenUbjson("This file is no readable UBJSON: a type has no count.", hint="Save the model again.")
        return kind, length, following

    def array(self, depth: int) -> Value:
        kind, length, following = self.kind_and_count()
        if kind in _NUMBERS and length is not None:
            width = struct.calcsize(_NUMBERS[kind])
            kept = min(length, _KEPT_NUMBERS)
            first = struct.unpack(f">{kept}{_NUMBERS[kind][1]}", self.take(kept * width))
            rest = (length - kept) * width
            if rest > self.size_bytes - self.handle.tell():
                self.take(rest)
            self.handle.seek(rest, 1)
            return NumberArray(length, first)
        found: list[Value] = []
        if length is not None:
            for _ in range(length):
                found.append(self.value(depth + 1, kind))
            return found
        while following != b"]":
            found.append(self.value(depth + 1, following))
            following = self.marker()
        return found

    def object(self, depth: int) -> Value:
        kind, length, following = self.kind_and_count()
        found: dict[str, Value] = {}
        number = 0
        while (number < length) if length is not None else following != b"}":
            if length is None:
                self.handle.seek(-1, 1)
            name = self.text()
            found[name] = self.value(depth + 1, kind)
            number += 1
            if length is None:
                following = self.marker()
        return found
