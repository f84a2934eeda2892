"""Where an ONNX file says its weights are, read off the wire format without parsing the model."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

MAX_FIELDS = 20_000_000
# Message type to {field number: message type of what is below}; onnx.proto3.
_BELOW: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "tensor": {13: "entry"},
}


def locations(path: Path) -> tuple[str, ...] | None:
    """Return the external data locations of the ONNX file ``path``, None when it is not one.

    A file that breaks off gives those before the break.
    """
    if path.stat().st_size < 4:
        return None
    with path.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[0] not in (0x08, 0x12, 0x1A, 0x3A, 0x42):  # ir_version first, or another field of ModelProto
            return None
        found: dict[str, None] = {}
        graph = False
        pending = [("model", 0, len(data))]
        visited = 0
        try:
            while pending:
                message, start, end = pending.pop()
                if message == "entry":
                    entry = {number: data[a:b] for number, a, b in _fields(data, start, min(end, start + (1 << 20)))}
                    if entry.get(1) == b"location":
                        found[entry.get(2, b"").decode("utf-8", "backslashreplace")] = None
                    continue
                below = _BELOW[message]
                for number, a, b in _fields(data, start, end):
                    visited += 1
                    if visited > MAX_FIELDS:
                        raise ValueError
                    if number in below:
                        graph = graph or below[number] == "graph"
                        pending.append((below[number], a, b))
        except ValueError:
            pass
        return tuple(found) if graph else None


def _fields(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield (number, start, end) of each length-delimited field. Raises ValueError where the wire format breaks."""
    while at < end:
        tag, at = _varint(data, at, end)
        match tag & 7:
            case 0:
                _, at = _varint(data, at, end)
            case 1:
                at += 8
            case 5:
                at += 4
            case 2:
                size, at = _varint(data, at, end)
                if size > end - at:
                    raise ValueError("a field is longer than its message")
                yield tag >> 3, at, at + size
                at += size
            case _:
                raise ValueError("there is no such wire type")


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("a number has no end")
