"""ByteSource: read a plain or compressed file forward, in bounded memory, or fail with EOFError."""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from schemas.errors import LimitExceeded, ModelFailed

MAX_UNPACKED_BYTES = 8 << 30
"""What a compressed pickle may unpack to; reading is streamed, so this bounds time, not memory."""
MAX_LZMA_MEMORY = 256 << 20
_CHUNK = 1 << 16

CODECS: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x5d\x00\x00", "lzma"),
    (b"\x78\x01", "zlib"),
    (b"\x78\x5e", "zlib"),
    (b"\x78\x9c", "zlib"),
    (b"\x78\xda", "zlib"),
)


def codec_of(head: bytes) -> str | None:
    """Return the name of the compression that ``head`` starts with, among those the standard library unpacks."""
    return next((name for magic, name in CODECS if head.startswith(magic)), None)


def _decompressor(codec: str) -> Any:
    match codec:
        case "gzip" | "zlib":
            return zlib.decompressobj(31 if codec == "gzip" else 15)
        case "bzip2":
            return bz2.BZ2Decompressor()
        case "xz":
            return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_LZMA_MEMORY)
    return lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=MAX_LZMA_MEMORY)


class _Unpacked(io.RawIOBase):
    """The unpacked bytes of a compressed handle; never holds more than a chunk of them."""

    def __init__(self, handle: IO[bytes], codec: str) -> None:
        self._handle, self._codec = handle, codec
        self._engine = _decompressor(codec)
        self._pending = b""
        self._total = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        want = min(len(buffer), _CHUNK)
        while True:
            try:
                out = self._some(want)
            except (zlib.error, lzma.LZMAError, OSError, ValueError, EOFError) as error:
                raise ModelFailed(
                    f"This file is {self._codec}-compressed and its compressed data is broken ({error}).",
                    hint="Copy it again, or save the model again.",
                ) from None
            if out is None:
                return 0
            if out:
                break
        self._total += len(out)
        if self._total > MAX_UNPACKED_BYTES:
            raise LimitExceeded(
                f"This {self._codec}-compressed file unpacks to more than {MAX_UNPACKED_BYTES >> 30} GiB.",
                hint="Save the model without compression.",
                limit=MAX_UNPACKED_BYTES,
                actual=self._total,
            )
        buffer[: len(out)] = out
        return len(out)

    def _some(self, want: int) -> bytes | None:
        """Return some unpacked bytes, b'' to be called again, None at the end."""
        if self._engine.eof:
            rest = self._engine.unused_data or self._handle.read(_CHUNK)
            # A file may hold several streams one after the other; what follows the last is not ours.
            if not rest.startswith(tuple(magic for magic, name in CODECS if name == self._codec)):
                return None
            self._engine, self._pending = _decompressor(self._codec), rest
        zlibbed = self._codec in ("gzip", "zlib")
        starved = False
        if not self._pending and (zlibbed or self._engine.needs_input):
            self._pending = self._handle.read(_CHUNK)
            starved = not self._pending
        out: bytes = self._engine.decompress(self._pending, want)
        if starved and not out and not self._engine.eof:  # zlib may still hold output when its input is used up
            raise EOFError("it ends early")
        self._pending = self._engine.unconsumed_tail if zlibbed else b""
        return out


class ByteSource:
    """Forward reading with exact sizes. Not thread-safe; valid while the file that ``open_bytes`` opened is."""

    def __init__(self, handle: IO[bytes], size_bytes: int | None) -> None:
        self._handle = handle
        self._size_bytes = size_bytes
        self.offset = 0

    def read(self, number: int) -> bytes:
        """Return exactly ``number`` bytes. Raises EOFError when there are fewer, before allocating them."""
        if self._size_bytes is not None and number > self._size_bytes - self.offset:
            raise EOFError
        parts = []
        missing = number
        while missing:
            part = self._handle.read(min(missing, 1 << 20))
            if not part:
                raise EOFError
            parts.append(part)
            missing -= len(part)
        self.offset += number
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def skip(self, number: int) -> None:
        """Move ``number`` bytes forward. Raises EOFError when there are fewer."""
        if self._size_bytes is not None:
            if number > self._size_bytes - self.offset:
                raise EOFError
            self._handle.seek(number, io.SEEK_CUR)
            self.offset += number
            return
        while number:
            number -= len(self.read(min(number, 1 << 20)))

    def line(self, limit: int) -> bytes:
        """Return the bytes up to the next newline, which is consumed. Raises EOFError without one in ``limit``."""
        line = self._handle.readline(limit)
        self.offset += len(line)
        if not line.endswith(b"\n"):
            raise EOFError
        return line[:-1]


@contextmanager
def open_bytes(path: Path) -> Iterator[ByteSource]:
    """Yield a ByteSource over ``path``, unpacking it on the way when it is compressed."""
    with path.open("rb") as handle:
        codec = codec_of(handle.read(16))
        handle.seek(0)
        if codec is None:
            yield ByteSource(handle, path.stat().st_size)
        else:
            yield ByteSource(io.BufferedReader(_Unpacked(handle, codec), _CHUNK), None)


def head_of(path: Path, number: int) -> bytes:
    """Return up to ``number`` first bytes, unpacked when the file is compressed; what there is of a broken one."""
    with path.open("rb") as handle:
        codec = codec_of(handle.read(16))
        handle.seek(0)
        if codec is None:
            return handle.read(number)
        unpacked, head = _Unpacked(handle, codec), b""
        while len(head) < number:
            try:
                part = unpacked.read(number - len(head))
            except ModelFailed:
                break
            if not part:
                break
            head += part
        return head
