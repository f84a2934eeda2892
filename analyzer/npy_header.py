"""The header of an .npy array: whether objects, and so a pickle, follow."""

from __future__ import annotations

import ast

from analyzer.scan_stream import ScanStream

_MAX_HEADER_BYTES = 1 << 20


def object_array(stream: ScanStream) -> bool | None:
    """Read the header; True when its dtype holds objects, None when it can't be read. Then the data is next.

    Source: numpy.lib.format, versions 1 to 3.
    """
    try:
        magic = stream.read(8)
        size = int.from_bytes(stream.read(2 if magic[6] == 1 else 4), "little")
        if size > _MAX_HEADER_BYTES:
            return None
        header = ast.literal_eval(stream.read(size).decode("latin-1").strip())
    except (EOFError, ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return None
    if not isinstance(header, dict) or "descr" not in header:
        return None
    return _objects(header["descr"])


def _objects(descr: object) -> bool:
    """Whether a dtype description names objects anywhere; strings may be lists such as 'f8,O'."""
    pending = [descr]
    while pending:
        part = pending.pop()
        if isinstance(part, str):
            if "O" in part or "object" in part:
                return True
        elif isinstance(part, list | tuple):
            pending += part
        elif isinstance(part, dict):
            pending += part.values()
    return False
