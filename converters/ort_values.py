"""OrtValues: bfloat16 and float8 in and out of onnxruntime, which numpy has no types for.

Outside, bfloat16 is kept as float32 and float8 as float16, which hold all their values.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from converters.arrays import Array
from converters.served_types import FLOAT8

if TYPE_CHECKING:
    import onnxruntime

_BFLOAT16 = 16
_TYPES = {"tensor(bfloat16)": _BFLOAT16} | {f"tensor({name.replace('_', '')})": code for code, name in FLOAT8.items()}
"""onnxruntime's names of them to TensorProto.DataType's numbers."""


def are_needed(session: onnxruntime.InferenceSession) -> bool:
    """Whether an input or output of the graph is of a type that numpy does not have."""
    return any(value.type in _TYPES for value in (*session.get_inputs(), *session.get_outputs()))


def ready(session: onnxruntime.InferenceSession, feeds: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``feeds`` as OrtValues, rounded to the nearest, ties to even, where the input's type is smaller."""
    import onnxruntime

    types = {value.name: value.type for value in session.get_inputs()}
    return {
        name: onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(_bits(array, code), code)
        if (code := _TYPES.get(types.get(name, ""))) is not None
        else onnxruntime.OrtValue.ortvalue_from_numpy(array)
        for name, array in feeds.items()
    }


def run(session: onnxruntime.InferenceSession, outputs: Sequence[str], values: Mapping[str, Any]) -> list[Any]:
    """Run on OrtValues and return arrays."""
    return [_array(value) for value in session.run_with_ort_values(list(outputs), values)]


def bound(session: onnxruntime.InferenceSession, outputs: Sequence[str], values: Mapping[str, Any]) -> Any:
    """Return ``values`` bound to the inputs and memory of onnxruntime's own to the outputs, for ``run_with_iobinding``.

    To time a run: handing over OrtValues takes Python 40 us a call, which is longer than a small model.
    """
    binding = session.io_binding()
    binding.held = values  # their memory is numpy's, and not every onnxruntime keeps them for as long as the binding
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    for name in outputs:
        binding.bind_output(name)
    return binding


def _bits(array: Array, code: int) -> Array:
    if code in FLOAT8:
        import ml_dtypes
        from onnx.numpy_helper import saturate_cast

        # As ONNX's Cast does by default: what is too large becomes the largest.
        return saturate_cast(array, np.dtype(getattr(ml_dtypes, FLOAT8[code]))).view(np.uint8)
    whole = np.ascontiguousarray(array, np.float32).reshape(array.shape)
    bits = whole.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    # Rounding would carry a NaN into infinity.
    return np.where(np.isnan(whole), 0x7FC0, rounded).astype(np.uint16)


def _array(value: Any) -> Any:
    code = _TYPES.get(value.data_type())
    if code is None:
        return value.numpy()
    shape = tuple(value.shape())
    count = math.prod(shape)
    # onnxruntime copies every type but these out itself.
    element = ctypes.c_uint8 if code in FLOAT8 else ctypes.c_uint16
    memory = (element * count).from_address(value.data_ptr()) if count else ()
    bits = np.array(memory, element).reshape(shape)
    if code in FLOAT8:
        import ml_dtypes

        return bits.view(getattr(ml_dtypes, FLOAT8[code])).astype(np.float16)
    return (bits.astype(np.uint32) << 16).view(np.float32)
