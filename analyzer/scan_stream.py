"""ScanStream: forward reading of hostile bytes, plain or packed, under one budget for a whole scan."""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

from schemas.errors import LimitExceeded

CHUNK = 1 << 18
MAX_LZMA_MEMORY = 256 << 20

PACKED: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x5d\x00\x00", "lzma"),
)
UNREADABLE: tuple[tuple[bytes, str], ...] = (
    (b"7z\xbc\xaf\x27\x1c", "7z"),
    (b"Rar!\x1a\x07", "RAR"),
    (b"\x28\xb5\x2f\xfd", "Zstandard"),
    (b"\x04\x22\x4d\x18", "LZ4"),
    (b"MSCF\x00\x00\x00\x00", "Cabinet"),
    (b"ZF0x", "joblib 0.9"),
)


def packing_of(head: bytes) -> str | None:
    """Return the packing that ``head`` starts with, as joblib tells it; zlib by its checked two-byte header."""
    for magic, name in PACKED:
        if head.startswith(magic):
            return name
    # RFC 1950: method 8, window up to 32 KiB, and the header is a multiple of 31. joblib looks at 0x78 alone.
    if len(head) > 2 and head[0] == 0x78 and (head[0] << 8 | head[1]) % 31 == 0 and not head[1] & 0x20:
        return "zlib"
    return None


@dataclass
class Budget:
    """What one scan may spend, over all files, members and nestings together."""

    unpacked_bytes: int = 8 << 30
    ratio: int = 300
    ratio_from_bytes: int = 128 << 20
    """The ratio counts only from here: a model of zeros packs well, and a small bomb is none."""
    opcodes: int = 60_000_000
    members: int = 200_000

    def spend_unpacked(self, number: int) -> None:
        """Take ``number`` unpacked bytes. Raises LimitExceeded when they are spent."""
        self.unpacked_bytes -= number
        if self.unpacked_bytes < 0:
            raise LimitExceeded("It unpacks to more than the scan reads, as a decompression bomb does.", bomb=True)

    def spend_opcodes(self, number: int) -> None:
        """Take ``number`` pickle opcodes. Raises LimitExceeded when they are spent."""
        self.opcodes -= number
        if self.opcodes < 0:
            raise LimitExceeded("Its pickles hold more opcodes than the scan reads.")

    def spend_member(self) -> None:
        """Take one archive member. Raises LimitExceeded when they are spent."""
        self.members -= 1
        if self.members < 0:
            raise LimitExceeded("Its archives hold more members than the scan reads.")


def _engine(packing: str) -> Any:
    match packing:
        case "gzip":
            return zlib.decompressobj(31)
        case "zlib":
            return zlib.decompressobj(15)
        case "deflate":
            return zlib.decompressobj(-15)
        case "bzip2":
            return bz2.BZ2Decompressor()
        case "xz":
            return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_LZMA_MEMORY)
    return lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=MAX_LZMA_MEMORY)


class Unpacked(io.RawIOBase):
    """The unpacked bytes of ``source``, several streams after one another included.

    Ends where the packed data ends or breaks; ``broken`` then says how. Raises LimitExceeded on a bomb.
    """

    def __init__(self, source: Callable[[int], bytes], packing: str, budget: Budget) -> None:
        self._source, self._packing, self._budget = source, packing, budget
        self._engine = _engine(packing)
        self._pending = b""
        self._taken = self._given = 0
        self.broken: str | None = None

    def readable(self) -> bool:
        """Whether it can be read: always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer`` with some unpacked bytes and return how many; 0 at the end."""
        out = b""
        while not out and self.broken is None:
            try:
                some = self._some(min(len(buffer), CHUNK))
            except (zlib.error, lzma.LZMAError, OSError, ValueError, EOFError, MemoryError) as error:
                self.broken = f"its {self._packing} data breaks off ({error})"
                break
            if some is None:
                break
            out = some  # empty: it needs more input first
        self._given += len(out)
        self._budget.spend_unpacked(len(out))
        if self._given > self._budget.ratio_from_bytes and self._given > self._budget.ratio * max(self._taken, 1):
            raise LimitExceeded(
                f"It unpacks to more than {self._budget.ratio} times its size, as a decompression bomb does.", bomb=True
            )
        buffer[: len(out)] = out
        return len(out)

    def _feed(self) -> bytes:
        more = self._source(CHUNK)
        self._taken += len(more)
        return more

    def _some(self, want: int) -> bytes | None:
        if self._engine.eof:
            rest: bytes = self._engine.unused_data or self._feed()
            # gzip's reader skips zeros between members; the others go on with the next stream at once.
            while self._packing == "gzip" and rest and not rest.strip(b"\0"):
                rest = self._feed()
            if self._packing == "deflate" or not rest:
                return None
            self._engine, self._pending = (
                _engine(self._packing),
                rest.lstrip(b"\0") if self._packing == "gzip" else rest,
            )
        by_zlib = self._packing in ("gzip", "zlib", "deflate")
        if not self._pending and (by_zlib or self._engine.needs_input):
            self._pending = self._feed()
            if not self._pending:
                raise EOFError("it ends early")
        if not by_zlib:
            out: bytes = self._engine.decompress(self._pending, want)
            self._pending = b""
            return out
        before = self._engine.copy()
        try:
            out = self._engine.decompress(self._pending, want)
        except zlib.error as error:
            # A wrong checksum throws away what came just before it, which a loader may have taken already.
            self.broken = f"its {self._packing} data breaks off ({error})"
            return self._salvaged(before, want)
        self._pending = self._engine.unconsumed_tail
        return out

    def _salvaged(self, engine: Any, want: int) -> bytes:
        parts: list[bytes] = []
        with suppress(zlib.error):
            for at in range(len(self._pending)):
                parts.append(engine.decompress(self._pending[at : at + 1]))
        return b"".join(parts)[:want]


class ScanStream:
    """Forward reading with a look ahead. ``offset`` counts from where it was opened."""

    def __init__(self, source: bytes | BinaryIO | io.RawIOBase, size_bytes: int | None = None) -> None:
        self._source: Any = io.BytesIO(source) if isinstance(source, bytes) else source
        self._left = len(source) if isinstance(source, bytes) else size_bytes
        self._buffer = b""
        self._at = 0
        self._base = 0

    @property
    def offset(self) -> int:
        """Bytes consumed so far."""
        return self._base + self._at

    def _more(self, need: int) -> None:
        """Hold at least ``need`` bytes beyond the position, or all there are."""
        parts = [self._buffer[self._at :]]
        have = len(parts[0])
        self._base += self._at
        self._at = 0
        while have < need:
            want = max(CHUNK, need - have) if need < CHUNK else min(need - have, 1 << 22)
            if self._left is not None:
                want = min(want, self._left)
            part = self._source.read(want) if want else b""
            if not part:
                break
            if self._left is not None:
                self._left -= len(part)
            parts.append(part)
            have += len(part)
        self._buffer = b"".join(parts)

    def peek(self, number: int) -> bytes:
        """Return the next ``number`` bytes, fewer at the end, without consuming them."""
        if len(self._buffer) - self._at < number:
            self._more(number)
        return self._buffer[self._at : self._at + number]

    def read(self, number: int) -> bytes:
        """Return exactly ``number`` bytes. Raises EOFError when there are fewer."""
        end = self._at + number
        if end > len(self._buffer):
            self._more(number)
            end = number
            if end > len(self._buffer):
                raise EOFError("it ends early")
        out = self._buffer[self._at : end]
        self._at = end
        return out

    def line(self, limit: int = 1 << 24) -> bytes:
        """Return the bytes up to the next newline, which is consumed. Raises EOFError without one in ``limit``."""
        need = 256
        while True:
            found = self._buffer.find(b"\n", self._at)
            if found >= 0:
                out = self._buffer[self._at : found]
                self._at = found + 1
                return out
            have = len(self._buffer) - self._at
            if have >= limit:
                raise EOFError("a line has no end")
            need = max(need, have) * 2
            self._more(need)
            if len(self._buffer) - self._at == have:
                raise EOFError("it ends early")

    def skip(self, number: int) -> None:
        """Move ``number`` bytes forward. Raises EOFError when there are fewer."""
        have = len(self._buffer) - self._at
        if number <= have:
            self._at += number
            return
        number -= have
        self._base += len(self._buffer)
        self._buffer, self._at = b"", 0
        if self._left is not None and number > self._left:
            raise EOFError("it ends early")
        if self._left is not None and self._source.seekable():
            self._source.seek(number, io.SEEK_CUR)
            self._left -= number
            self._base += number
            return
        while number:
            step = min(number, 1 << 20)
            self.read(step)
            number -= step
