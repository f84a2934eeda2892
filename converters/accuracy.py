"""Accuracy: the share of right answers on samples whose labels a person gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from converters.arrays import Array, plain


def accuracy(outputs: Mapping[str, Array], labels: Array, names: Sequence[str] = ()) -> float | None:
    """Return the share of rows answered rightly, or None when no output answers ``labels``.

    An output of integers or strings, one a row, is the answer itself; else the largest score of an output with one row
    a label and two columns or more. ``labels`` are compared as class positions, or as names out of ``names``.
    """
    labels = plain(np.asarray(labels)).reshape(-1)
    answer = _answers(outputs, len(labels))
    if answer is None or not len(labels):
        return None
    if answer.dtype.kind == "U" or labels.dtype.kind == "U":
        return float(np.mean(_as_text(answer, names) == _as_text(labels, names)))
    if labels.dtype.kind == "f" and not np.array_equal(labels, np.round(labels)):
        # Numbers to approach, not classes to hit.
        return None
    return float(np.mean(answer.astype(np.int64) == labels.astype(np.int64)))


def _answers(outputs: Mapping[str, Array], rows: int) -> Array | None:
    fitting = [array for array in outputs.values() if array.ndim and array.shape[0] == rows]
    for array in fitting:
        if array.dtype.kind in "iuU" and array.size == rows:
            return array.reshape(-1)
    for array in fitting:
        if array.dtype.kind == "f" and array.ndim == 2 and array.shape[1] >= 2:
            return np.asarray(array.argmax(1))
    return None


def _as_text(values: Array, names: Sequence[str]) -> Array:
    if values.dtype.kind == "U":
        return values
    numbers = values.astype(np.int64)
    return np.array([names[n] if 0 <= n < len(names) else str(n) for n in numbers], dtype=np.str_)
