"""OrtValues: bfloat16 in and out of onnxruntime, which numpy has no type for; outside it is kept as float32."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from converters.arrays import Array

if TYPE_CHECKING:
    import onnxruntime

_BFLOAT16 = 16
"""TensorProto.DataType's number."""
_TYPE = "tensor(bfloat16)"


def has_bfloat16(session: onnxruntime.InferenceSession) -> bool:
    """Whether an input or output of the graph is bfloat16."""
    return any(value.type == _TYPE for value in (*session.get_inputs(), *session.get_outputs()))


def ready(session: onnxruntime.InferenceSession, feeds: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``feeds`` as OrtValues; float32 for an input of bfloat16 is rounded to the nearest, ties to even."""
    import onnxruntime

    types = {value.name: value.type for value in session.get_inputs()}
    return {
        name: onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(_bits(array), _BFLOAT16)
        if types.get(name) == _TYPE
        else onnxruntime.OrtValue.ortvalue_from_numpy(array)
        for name, array in feeds.items()
    }


def run(session: onnxruntime.InferenceSession, outputs: Sequence[str], values: Mapping[str, Any]) -> list[Any]:
    """Run on OrtValues and return arrays."""
    return [_array(value) for value in session.run_with_ort_values(list(outputs), values)]


def _bits(array: Array) -> Array:
    whole = np.ascontiguousarray(array, np.float32).reshape(array.shape)
    bits = whole.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    # Rounding would carry a NaN into infinity.
    return np.where(np.isnan(whole), 0x7FC0, rounded).astype(np.uint16)


def _array(value: Any) -> Any:
    if value.data_type() != _TYPE:
        return value.numpy()
    shape = tuple(value.shape())
    count = math.prod(shape)
    # onnxruntime copies every type but this one out itself.
    memory = (ctypes.c_uint16 * count).from_address(value.data_ptr()) if count else ()
    bits = np.array(memory, np.uint16).reshape(shape)
    return (bits.astype(np.uint32) << 16).view(np.float32)
