"""Agreement: whether the reference that the pipeline computed is what ONNX says the model must give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_models

LEAST_RTOL, LEAST_ATOL = 1e-3, 1e-5
"""ONNX's own tests allow a relative thousandth; float32 sums in another order need the absolute part."""


def disagreement(root: Path, model: Path, reference: Path) -> str:
    """Return how the reference of ``model`` differs from what it must give; '' when it does not, or nothing is told."""
    wanted = onnx_models.expected(root, model) if (root / onnx_models.EXPECTED).is_dir() else None
    given = reference / "samples.outputs.npz"
    if wanted is None or not given.is_file():
        return ""
    arrays, rtol, atol = wanted
    with np.load(given, allow_pickle=False) as stored:
        found = {name.replace("%2F", "/").replace("%25", "%"): stored[name] for name in stored.files}
    for name, array in arrays.items():
        got = found.get(name)
        if got is None or got.shape != array.shape:
            return f"output {name!r} has shape {None if got is None else list(got.shape)}, expected {list(array.shape)}"
        if array.dtype.kind in "USO":
            same = bool(np.array_equal(got.astype(str), array.astype(str)))
        else:
            bounds = {"rtol": max(rtol, LEAST_RTOL), "atol": max(atol, LEAST_ATOL)}
            same = bool(np.allclose(got.astype(np.float64), array.astype(np.float64), equal_nan=True, **bounds))
        if not same:
            return f"output {name!r} has other values than expected"
    return ""
