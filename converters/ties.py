"""Ties: rows whose label says nothing, because the original's own scores put two classes first."""

from __future__ import annotations

import numpy as np

from converters.arrays import Array, Arrays

TIE = 1e-6
"""How near, relative to the larger, scores are that float32 can't tell apart: its rounding is 6e-8, and sums of a few
terms keep it below this. The label of such a row is whichever class rounding puts first, here or on any machine."""


def settled(expected: Arrays, given: Arrays) -> Arrays:
    """Return ``given`` with the original's label in rows where its two best scores tie, and the candidate's do too.

    That is for classifiers that give labels beside scores, [rows, classes]; where several outputs could be the scores,
    nothing is settled.
    """
    scores = [name for name, array in expected.items() if _is_scores(array)]
    if len(scores) != 1 or not _is_scores(given.get(scores[0])):
        return given
    tied = _tied(expected[scores[0]])
    if given[scores[0]].shape != expected[scores[0]].shape or not tied.any():
        return given
    tied &= _tied(given[scores[0]])
    labels = {
        name: np.where(tied, array, given[name])
        for name, array in expected.items()
        if array.shape == tied.shape and array.dtype.kind not in "fc" and given[name].shape == tied.shape
    }
    return {**given, **labels}


def _is_scores(array: Array | None) -> bool:
    return array is not None and array.dtype.kind == "f" and array.ndim == 2 and array.shape[1] > 1


def _tied(scores: Array) -> Array:
    second, first = np.sort(scores.astype(np.float64), axis=1)[:, -2:].T
    tied: Array = first - second <= TIE * np.abs(first)
    return tied
