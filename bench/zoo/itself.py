"""Itself: whether onnxruntime alone runs an ONNX backend test and gives what it must."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from onnx_models import BackendCase

_CODES = {"bfloat16": 16, "float8_e4m3fn": 17, "float8_e4m3fnuz": 18, "float8_e5m2": 19, "float8_e5m2fnuz": 20}
"""numpy's name of a type that it has not itself to TensorProto's number."""


def runs_itself(case: BackendCase) -> str:
    """Return ``ok``, or why onnxruntime does not run the test: refuses the file, the inputs, or answers otherwise."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(case.model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - onnxruntime's own classes share no base
        return f"onnxruntime does not load it: {_first(error)}"
    if len(session.get_inputs()) != len(case.inputs):
        return "the test gives other inputs than the model takes"
    feeds = {
        value.name: _fed(value.type, array) for value, array in zip(session.get_inputs(), case.inputs, strict=True)
    }
    try:
        if any(isinstance(value, onnxruntime.OrtValue) for value in feeds.values()):
            values = {
                name: value
                if isinstance(value, onnxruntime.OrtValue)
                else onnxruntime.OrtValue.ortvalue_from_numpy(value)
                for name, value in feeds.items()
            }
            session.run_with_ort_values(None, values)
            return "ok"
        given = session.run(None, feeds)
    except Exception as error:  # noqa: BLE001
        return f"onnxruntime does not run it: {_first(error)}"
    for name, got, wanted in zip([o.name for o in session.get_outputs()], given, case.outputs, strict=False):
        if isinstance(got, np.ndarray) and isinstance(wanted, np.ndarray) and not _same(got, wanted, case):
            return f"onnxruntime gives another {name} than the test expects"
    return "ok"


def _fed(kind: str, array: Any) -> Any:
    import onnxruntime

    if not isinstance(array, np.ndarray):
        return array
    if kind == "tensor(bfloat16)" and array.dtype == np.float32:
        bits = (np.ascontiguousarray(array).view(np.uint32) >> 16).astype(np.uint16)
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, _CODES["bfloat16"])
    if array.dtype.name in _CODES:
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint8), _CODES[array.dtype.name])
    return array.astype(object) if array.dtype.kind in "US" else array


def _same(got: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any], case: BackendCase) -> bool:
    if got.shape != wanted.shape:
        return False
    if got.dtype.kind in "OUS":
        return bool(np.array_equal(got.astype(str), wanted.astype(str)))
    bounds = {"rtol": max(case.rtol, 1e-3), "atol": max(case.atol, 1e-5)}
    return bool(np.allclose(np.asarray(got, np.float64), np.asarray(wanted, np.float64), equal_nan=True, **bounds))


def _first(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text.split(" : ", 3)[-1][:200]
