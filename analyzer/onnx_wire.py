"""Protobuf's wire format, walked without a parser: enough to tell an ONNX file and where it was cut."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO

MAX_TOP_FIELDS = 100_000
MAX_GRAPH_FIELDS = 2_000_000

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
# ModelProto: field number to wire type (onnx.proto3).
_MODEL = {1: VARINT, 2: BYTES, 3: BYTES, 4: BYTES, 5: VARINT, 6: BYTES, 7: BYTES, 8: BYTES, 14: BYTES, 20: BYTES,
          25: BYTES, 26: BYTES}  # fmt: skip
GRAPH = 7


class NotWire(Exception):
    """The bytes are no protobuf message."""


@dataclass(frozen=True)
class WireField:
    """One field: its number, wire type, where its payload starts and how long it says it is."""

    number: int
    wire: int
    start: int
    length: int


def _varint(handle: IO[bytes]) -> int:
    result = shift = 0
    while True:
        byte = handle.read(1)
        if not byte or shift > 63:
            raise NotWire
        result |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return result
        shift += 7


def fields(handle: IO[bytes], start: int, end: int) -> Iterator[WireField]:
    """Yield the fields between two offsets. The last may say that it is longer than what is left; then it ends."""
    handle.seek(start)
    position = start
    while position < end:
        tag = _varint(handle)
        number, wire = tag >> 3, tag & 7
        if number == 0 or number >= 1 << 29:
            raise NotWire
        if wire == VARINT:
            at = handle.tell()
            _varint(handle)
            length = handle.tell() - at
        elif wire == BYTES:
            length = _varint(handle)
            at = handle.tell()
        elif wire in (FIXED64, FIXED32):
            length = 8 if wire == FIXED64 else 4
            at = handle.tell()
        else:
            raise NotWire
        yield WireField(number, wire, at, length)
        position = at + length
        if position > end:
            return
        handle.seek(position)


@dataclass(frozen=True)
class OnnxSight:
    """What the outer fields say: the graph's place and whether the file ends inside a field."""

    graph: WireField | None
    missing_bytes: int
    graph_fields: int = 0


def sight(path: Path) -> OnnxSight | None:
    """Return what the outer fields of an ONNX file say, None when the file is no ONNX ModelProto."""
    size = path.stat().st_size
    seen: set[int] = set()
    graph: WireField | None = None
    missing = 0
    with path.open("rb") as handle:
        try:
            for count, item in enumerate(fields(handle, 0, size)):
                if _MODEL.get(item.number) != item.wire or count > MAX_TOP_FIELDS:
                    return None
                seen.add(item.number)
                missing = max(0, item.start + item.length - size)
                if item.number == GRAPH:
                    graph = item
        except NotWire:
            return None
        if missing:
            return OnnxSight(graph, missing) if 1 in seen and graph is not None else None
        if not (GRAPH in seen or {1, 8} <= seen):
            return None
        inner = 0
        if graph is not None:
            try:
                walked = fields(handle, graph.start, graph.start + graph.length)
                inner = sum(1 for _ in islice(walked, MAX_GRAPH_FIELDS + 1))
            except NotWire:
                return None if 1 not in seen else OnnxSight(graph, 0)
    return OnnxSight(graph, 0, inner)
