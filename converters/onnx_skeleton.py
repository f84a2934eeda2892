"""Skeleton: an ONNX model without the bytes of its big weights, for all that reads the graph alone.

Protobuf's Python classes copy every byte of a message that is serialised, and onnx's checker and shape inference take a
serialised message: 0.15 s and 0.5 s for 100 MB of weights that neither looks at. A model is written here piece by piece
for the same reason, in half the time that serialising it as a whole takes.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import onnx
    from google.protobuf.message import Message

    M = TypeVar("M", bound=Message)

BIG_ELEMENTS = 1024
"""Tensors of fewer stay: an operator may take its axes or its shape from them."""
_GRAPH, _INITIALIZER, _RAW_DATA = b"\x3a", b"\x2a", b"\x4a"
"""Tags of ModelProto.graph, GraphProto.initializer and TensorProto.raw_data: field number times 8, plus 2 for bytes."""


def skeleton(model: onnx.ModelProto, *, shapes: bool = True) -> onnx.ModelProto:
    """Return a copy of ``model`` whose big initializers have no bytes, as if they lay elsewhere.

    Without ``shapes`` they hold nothing instead, in which onnx's checker finds no fault.
    """
    light = _without(model, "graph")
    light.graph.CopyFrom(_without(model.graph, "initializer"))
    for tensor in model.graph.initializer:
        kept = light.graph.initializer.add()
        elsewhere = tensor.data_location == tensor.EXTERNAL
        if not elsewhere and (math.prod(tensor.dims) < BIG_ELEMENTS or not tensor.HasField("raw_data")):
            kept.CopyFrom(tensor)
        elif shapes:
            kept.CopyFrom(_without(tensor, "raw_data"))
            kept.data_location = kept.EXTERNAL
        else:
            kept.name, kept.data_type, kept.dims[:] = tensor.name, tensor.data_type, [0]
    return light


def write(model: onnx.ModelProto, file: Path) -> None:
    """Write ``model`` to ``file``: the same message that ``SerializeToString`` gives, its graph's weights last."""
    head = _without(model, "graph").SerializeToString()
    body = _without(model.graph, "initializer").SerializeToString()
    pieces: list[bytes] = []
    for tensor in model.graph.initializer:
        if tensor.HasField("raw_data"):
            raw = tensor.raw_data
            start = _without(tensor, "raw_data").SerializeToString() + _RAW_DATA + _varint(len(raw))
        else:
            start, raw = tensor.SerializeToString(), b""
        pieces += [_INITIALIZER + _varint(len(start) + len(raw)) + start, raw]
    with file.open("wb") as out:
        out.write(head + _GRAPH + _varint(len(body) + sum(map(len, pieces))) + body)
        out.writelines(pieces)


def _without(message: M, name: str) -> M:
    """Return a copy of ``message`` without the field ``name``, whose bytes are not touched."""
    copy: M = type(message)()
    for field, value in message.ListFields():
        if field.name == name:
            continue
        if hasattr(value, "extend"):  # repeated; how a descriptor says so differs between protobuf's versions
            getattr(copy, field.name).extend(value)
        elif field.message_type is not None:
            getattr(copy, field.name).CopyFrom(value)
        else:
            setattr(copy, field.name, value)
    return copy


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*out, number))
