"""Zstandard streams, where this Python has a reader for them: its own from 3.14 on, or the zstandard package."""

from __future__ import annotations

import importlib
import importlib.util
import io
from typing import Any, BinaryIO

from analyzer.scan_stream import Budget
from schemas.errors import LimitExceeded, Unsupported

_MAX_WINDOW_BYTES = 256 << 20


def can_unzstd() -> bool:
    """Whether Zstandard data can be unpacked here."""
    try:
        return importlib.util.find_spec("compression.zstd") is not None
    except ModuleNotFoundError:
        return importlib.util.find_spec("zstandard") is not None


def open_zstd(handle: BinaryIO, budget: Budget, packed_bytes: int) -> ZstdUnpacked:
    """Return the unpacked bytes of ``handle``. Raises Unsupported where nothing here reads Zstandard."""
    try:
        own = importlib.import_module("compression.zstd")
    except ModuleNotFoundError:
        try:
            package = importlib.import_module("zstandard")
        except ModuleNotFoundError:
            raise Unsupported(
                "This file is Zstandard-compressed, which this Python does not read.",
                hint="Pack it with gzip instead: tar -czf model.tar.gz FOLDER.",
            ) from None
        stream = package.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES).stream_reader(
            handle, read_across_frames=True
        )
        return ZstdUnpacked(stream, budget, packed_bytes, (package.ZstdError, EOFError, OSError))
    return ZstdUnpacked(own.ZstdFile(handle), budget, packed_bytes, (own.ZstdError, EOFError, OSError))


class ZstdUnpacked(io.RawIOBase):
    """Unpacked bytes under a budget; ``broken`` says how the data ended where it did not end well."""

    def __init__(self, stream: Any, budget: Budget, packed_bytes: int, errors: tuple[type[Exception], ...]) -> None:
        self._stream, self._budget, self._packed, self._errors = stream, budget, packed_bytes, errors
        self._given = 0
        self.broken: str | None = None

    def readable(self) -> bool:
        """Whether it can be read: always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer`` with some unpacked bytes and return how many. Raises LimitExceeded on a bomb."""
        try:
            out: bytes = self._stream.read(len(buffer))
        except self._errors as error:
            self.broken = f"its Zstandard data breaks off ({error})"
            return 0
        self._given += len(out)
        self._budget.spend_unpacked(len(out))
        if self._given > self._budget.ratio_from_bytes and self._given > self._budget.ratio * self._packed:
            raise LimitExceeded(
                f"It unpacks to more than {self._budget.ratio} times its size, as a decompression bomb does.", bomb=True
            )
        buffer[: len(out)] = out
        return len(out)
