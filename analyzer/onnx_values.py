"""Values: the inputs and outputs that an ONNX graph declares, as the tensors that they are served as."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from analyzer.draft import clean
from schemas.descriptor import BATCH_AXIS, Dim, DType, KnownBy, TensorSpec

TYPES = {1: ("float32", 32), 2: ("uint8", 8), 3: ("int8", 8), 4: ("uint16", 16), 5: ("int16", 16), 6: ("int32", 32),
          7: ("int64", 64), 8: ("string", 0), 9: ("bool", 8), 10: ("float16", 16), 11: ("float64", 64),
          12: ("uint32", 32), 13: ("uint64", 64), 14: ("complex64", 64), 15: ("complex128", 128),
          16: ("bfloat16", 16), 17: ("float8_e4m3fn", 8), 18: ("float8_e4m3fnuz", 8), 19: ("float8_e5m2", 8),
          20: ("float8_e5m2fnuz", 8), 21: ("uint4", 4), 22: ("int4", 4), 23: ("float4_e2m1", 4)}  # fmt: skip
"""onnx.TensorProto.DataType: name and bits an element."""
_SPEC_DTYPES: dict[str, DType] = {
    "float64": "float64", "float32": "float32", "float16": "float16", "bfloat16": "bfloat16", "int64": "int64",
    "int32": "int32", "int16": "int16", "int8": "int8", "uint64": "uint64", "uint32": "uint32", "uint16": "uint16",
    "uint8": "uint8", "bool": "bool", "string": "string",
    **dict.fromkeys(("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"), "float16"),
}  # fmt: skip
"""Float8, which no server carries, is served as float16, which holds all its values."""
CARRIED = ("", "optional", "sequence", "optional sequence")
"""What a tensor may be held in: a sequence is served as one tensor, what is optional as always there."""
_MADE_UP = re.compile(r"unk_|dynamicdimension|s\d+\Z|dim_?0\Z|\w+_dim_0\Z")
"""Axis names that exporters make up: tf2onnx, onnxruntime, torch.export, torch.onnx."""
_BATCH_NAMES = frozenset({"n", "b", "bs", "none", "?", "-1", "0"})


def text(value: str | bytes) -> str:
    """Return a protobuf string; one that is no UTF-8 arrives as bytes."""
    return value if isinstance(value, str) else value.decode("utf-8", "replace")


@dataclass(frozen=True)
class Value:
    """One input or output as the file declares it."""

    name: str
    held_in: str
    """'' for a plain tensor; ``optional``, ``sequence`` or ``optional sequence``; ``map`` and the like."""
    element: str
    """ONNX's name of the elements' type; '' where it is not told."""
    axes: tuple[int | str, ...] | None
    """Sizes, names, '' for an axis without either; None without a shape. The number of a sequence's tensors leads."""

    @property
    def dtype(self) -> DType | None:
        """What the elements are served as; None where that is nothing, or not told."""
        return _SPEC_DTYPES.get(self.element) if self.held_in in CARRIED else None

    @property
    def type_in_file(self) -> str:
        """Its type where it is served as another, such as ``sequence`` or ``float8_e5m2``; else ''."""
        return self.held_in or (self.element if self.dtype not in (None, self.element) else "")


def value_of(info: Any) -> Value:
    """Return what a ValueInfoProto declares."""
    kind, held, name = info.type, [], text(info.name)
    for outer in ("optional", "sequence"):
        if kind.WhichOneof("value") == f"{outer}_type":
            kind = getattr(kind, f"{outer}_type").elem_type
            held.append(outer)
    inner = kind.WhichOneof("value")
    if inner not in (None, "tensor_type"):
        return Value(name, inner.removesuffix("_type"), "", None)
    code = kind.tensor_type.elem_type
    element = TYPES.get(code, ("unknown", 0))[0] if code else ""
    if not kind.tensor_type.HasField("shape"):
        return Value(name, " ".join(held), element, None)
    axes: list[int | str] = [f"{name[:40]}_count"] if "sequence" in held else []
    for dim in kind.tensor_type.shape.dim:
        which = dim.WhichOneof("value")
        fixed = dim.dim_value if which == "dim_value" else -1
        axes.append(fixed if 0 <= fixed < 1 << 48 else (text(dim.dim_param) if which == "dim_param" else ""))
    return Value(name, " ".join(held), element, tuple(axes))


def _batchlike(name: str) -> bool:
    lower = name.lower()
    return not lower or "batch" in lower or lower in _BATCH_NAMES or _MADE_UP.match(lower) is not None


def batch_names(shapes: Iterable[Sequence[int | str] | None]) -> frozenset[str]:
    """Return the axis names that stand for the batch; empty when the leading axes do not look like one.

    They do when the leading axis of every input with axes is dynamic and all their names look like a batch: contain
    the word, are n, b or bs, are made up by a tool (unk__1, s77) or absent. Or when a name says batch itself. That is
    a guess until the probe has run rows together and one by one.
    """
    leading = [shape[0] for shape in shapes if shape]
    said = frozenset(name for name in leading if isinstance(name, str) and "batch" in name.lower())
    if leading and all(isinstance(name, str) and _batchlike(name) for name in leading):
        return frozenset(str(name) for name in leading) | said
    return said


def spec_of(value: Value, batch: frozenset[str]) -> TensorSpec | None:
    """Return ``value`` as the tensor that it is served as; None where its type, shape or name is not told."""
    name, axes, dtype = value.name, value.axes, value.dtype
    if axes is None or dtype is None or len(axes) > 16 or len(name) > 256 or name != clean(name, 256):
        return None
    shape: list[Dim] = []
    known_by = KnownBy.HEADER
    for axis, dim in enumerate(axes):
        if isinstance(dim, int):
            shape.append(dim)
        elif axis == 0 and batch and (dim in batch or _batchlike(dim)):
            shape.append(BATCH_AXIS)
            known_by = known_by if "batch" in dim.lower() else KnownBy.GUESS
        else:
            shape.append(clean(dim, 64) or f"{clean(name, 40)}_{axis}")
    return TensorSpec(name=name, dtype=dtype, shape=tuple(shape), known_by=known_by)


def zipped_spec_of(value: Value, batch: frozenset[str]) -> TensorSpec | None:
    """Return what the list of maps ``value`` is as a tensor, a row for each; running it tells how many classes."""
    if len(value.name) > 40 or value.name != clean(value.name, 40):
        return None
    rows = BATCH_AXIS if batch else f"{value.name}_0"
    return TensorSpec(name=value.name, dtype="float32", shape=(rows, f"{value.name}_1"), known_by=KnownBy.GUESS)
