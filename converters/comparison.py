"""Comparison: how far a candidate's array is from the original's, and whether that passes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from converters.arrays import Array
from schemas.descriptor import TensorSpec
from schemas.evidence import OutputParity
from schemas.target import Tolerance

_NORM_RATIO = 0.1
"""Cosine does not see a wrong scale, so the lengths of two rows may differ by this share at most."""
_TINY = 1e-6
"""Keeps a relative difference finite where the original is zero; the same number stands in the report's schema."""


@dataclass(frozen=True)
class Difference:
    """One output in one case. Figures are None where they make no sense; ``why`` is empty when it passed."""

    method: Literal["numeric", "agreement"]
    passed: bool
    why: str = ""
    max_abs: float | None = None
    max_rel: float | None = None
    cosine: float | None = None
    agreement: float | None = None
    weight: int = 1
    """Number of values that ``agreement`` is the share of."""
    by_distance: bool = False
    """It failed by how far the values are apart; not by their dtype, shape, NaN or infinity."""
    kl: float | None = None
    """Mean divergence of a language model's distributions, in nats."""


def compare(
    original: Array,
    candidate: Array,
    tolerance: Tolerance,
    *,
    lossy: bool,
    classes: bool = False,
    tokens: bool = False,
    vector: bool = False,
) -> Difference:
    """Compare two arrays of one output.

    A numeric array passes when |candidate - original| <= atol + rtol * |original| everywhere, numpy.allclose's
    formula. The formula is taken as it is, without scaling atol to the size of the activations: that would excuse
    errors in a small column beside a large one. With ``lossy`` it passes when every row's cosine reaches
    ``min_cosine`` and its length is within a tenth, and not by the formula: a lossy tolerance is wide, and small
    outputs stay within it whatever their direction. Only rows of a single number, which have no direction, are judged
    by the formula then too. NaN and infinities must stand in the same places. Integers, booleans and strings pass when
    the share of equal values reaches ``min_agreement``; with ``lossy``, 8- and 16-bit integers are the numbers of a
    quantised model and are compared as such.

    ``classes`` says that the last axis holds scores of classes; then the share of equal top-1 is told as well.
    ``tokens`` says that it holds logits over a vocabulary; then the share of equal tokens is told, and how far the
    distributions are apart.
    ``vector`` says that an array of one axis is one row, and not one number a row.
    """
    numeric = original.dtype.kind == "f" or (lossy and original.dtype.kind in "iu" and original.dtype.itemsize <= 2)
    method: Literal["numeric", "agreement"] = "numeric" if numeric else "agreement"
    if _kind(original) != _kind(candidate):
        return Difference(method, False, f"is {candidate.dtype.name} where the original gives {original.dtype.name}")
    if original.shape != candidate.shape:
        return Difference(
            method, False, f"has shape {list(candidate.shape)} where the original gives {list(original.shape)}"
        )
    if not numeric:
        share = float(np.mean(original == candidate)) if original.size else 1.0
        why = "" if share >= tolerance.min_agreement else f"agrees in {share:.2%} of its values"
        return Difference(method, not why, why, agreement=share, weight=max(original.size, 1))
    difference = _numeric(
        original.astype(np.float64), candidate.astype(np.float64), tolerance, lossy, classes or tokens, vector
    )
    if tokens and difference.agreement is not None:
        return replace(difference, kl=divergence(original, candidate))
    return difference


def divergence(original: Array, candidate: Array) -> float:
    """Return the mean of KL(original || candidate) over all places, in nats; the last axis holds logits.

    Logits of minus infinity, which forbid a token, count as the least chance that float64 can tell from none.
    """
    width = original.shape[-1]
    p, q = _log_softmax(original.reshape(-1, width)), _log_softmax(candidate.reshape(-1, width))
    each = np.clip((np.exp(p) * (p - q)).sum(-1), 0.0, None)
    return float(each.mean()) if each.size else 0.0


_LEAST_LOG = -700.0


def _log_softmax(logits: Array) -> Array:
    rows = np.nan_to_num(logits.astype(np.float64))
    rows = np.maximum(rows - rows.max(-1, keepdims=True, initial=np.finfo(np.float64).min), _LEAST_LOG)
    result: Array = rows - np.log(np.exp(rows).sum(-1, keepdims=True))
    return result


_TOKEN_TASKS = frozenset({"text-generation", "text2text-generation", "fill-mask", "automatic-speech-recognition"})


def token_outputs(task: str | None, outputs: Sequence[TensorSpec]) -> frozenset[str]:
    """Return the outputs that hold logits over a vocabulary: (batch, place, token), of a model that gives tokens."""
    if task not in _TOKEN_TASKS:
        return frozenset()
    return frozenset(
        spec.name
        for spec in outputs
        if "logits" in spec.name and "float" in spec.dtype and len(spec.shape) == 3 and spec.shape[-1] not in (0, 1)
    )


def _numeric(a: Array, b: Array, tolerance: Tolerance, lossy: bool, classes: bool, vector: bool) -> Difference:
    finite = np.isfinite(a)
    if not (np.array_equal(finite, np.isfinite(b)) and np.array_equal(a[~finite], b[~finite], equal_nan=True)):
        return Difference("numeric", False, "has NaN or infinity in other places than the original")
    a, b = np.where(finite, a, 0.0), np.where(finite, b, 0.0)
    error = np.abs(b - a)
    max_abs = float(error.max(initial=0.0))
    max_rel = float((error / (np.abs(a) + _TINY)).max(initial=0.0))
    close = bool(np.all(error <= tolerance.atol + tolerance.rtol * np.abs(a)))
    cosine, ratio = least_cosine(a, b, vector=vector)
    agreement, weight = (None, 1)
    if classes and a.ndim >= 2 and a.shape[-1] >= 2:
        equal = a.argmax(-1) == b.argmax(-1)
        agreement, weight = (float(equal.mean()) if equal.size else 1.0), max(equal.size, 1)
    why = ""
    if cosine is None or not lossy:
        why = "" if close else f"differs by up to {max_abs:.3g}"
    elif cosine < tolerance.min_cosine:
        why = f"has cosine {cosine:.5f}, below {tolerance.min_cosine:g}, and differs by up to {max_abs:.3g}"
    elif ratio > _NORM_RATIO:
        why = f"has rows whose length is off by {ratio:.0%}"
    return Difference("numeric", not why, why, max_abs, max_rel, cosine, agreement, weight, bool(why))


def least_cosine(a: Array, b: Array, *, vector: bool = False) -> tuple[float | None, float]:
    """Return the least cosine over rows of two float64 arrays, and the largest relative difference of their lengths.

    Rows are the leading axis; with ``vector`` an array of one axis is a single row. A row of one number has no
    direction: the cosine is None. Two rows of zeros are equal (1); a row of zeros against another is not (0).
    """
    rows = 1 if a.ndim == 0 or (vector and a.ndim == 1) else a.shape[0]
    if a.size < 2 * max(rows, 1):
        return None, 0.0
    a, b = a.reshape(rows, -1), b.reshape(rows, -1)
    # Scaled by each row's largest value first, so that squares of huge or tiny values stay finite.
    size_a, size_b = np.abs(a).max(1, keepdims=True), np.abs(b).max(1, keepdims=True)
    unit_a, unit_b = a / np.where(size_a > 0, size_a, 1), b / np.where(size_b > 0, size_b, 1)
    norm_a, norm_b = np.linalg.norm(unit_a, axis=1), np.linalg.norm(unit_b, axis=1)
    zero_a, zero_b = norm_a == 0, norm_b == 0
    product = np.where(zero_a | zero_b, 1.0, norm_a * norm_b)
    cosine = np.where(zero_a & zero_b, 1.0, (unit_a * unit_b).sum(1) / product)
    length_a, length_b = norm_a * size_a[:, 0], norm_b * size_b[:, 0]
    longest = np.maximum(length_a, length_b)
    ratio = np.abs(length_a - length_b) / np.where(longest > 0, longest, 1)
    return float(np.clip(cosine.min(), -1.0, 1.0)), float(ratio.max())


def _kind(array: Array) -> str:
    if array.dtype.kind in "USO":
        return "string"
    return {"f": "float", "b": "bool"}.get(array.dtype.kind, "integer")


def gather(
    name: str, found: Sequence[tuple[str, bool, Difference]], tolerance: Tolerance, *, lossy: bool
) -> tuple[OutputParity, str]:
    """Join one output's differences over all cases, given as (case id, case is real, difference).

    Return the joined figures and, when it failed, why with the case's id. Agreement is taken over the real cases where
    there are any: on random inputs every class is nearly as likely as another, and a top-1 there proves nothing. So is
    the distance of a lossy candidate: noise drives activations to where no real input does, and int8 is scaled by them.
    """
    judged = [item for item in found if item[1]] if lossy else []
    judged = judged or list(found)
    ids = {case for case, _, _ in judged}
    failed = [(case, d) for case, _, d in found if not d.passed and (case in ids or not d.by_distance)]
    real = [d for _, is_real, d in found if is_real and d.agreement is not None]
    counted = real or [d for _, _, d in found if d.agreement is not None]
    total = sum(d.weight for d in counted)
    agreement = sum((d.agreement or 0.0) * d.weight for d in counted) / total if total else None
    spread = [d for d in counted if d.kl is not None]
    kl = sum((d.kl or 0.0) * d.weight for d in spread) / sum(d.weight for d in spread) if spread else None
    method = found[0][2].method if found else "numeric"
    if method == "agreement":
        # The share over all values decides; one small case with one flip is no failure of its own.
        failed = [(case, d) for case, d in failed if d.agreement is None]
        if not failed and agreement is not None and agreement < tolerance.min_agreement:
            worst = min(found, key=lambda item: item[2].agreement if item[2].agreement is not None else 1.0)
            failed = [(worst[0], Difference("agreement", False, f"agrees in {agreement:.2%} of its values"))]
    elif lossy and not failed and agreement is not None and agreement < tolerance.min_agreement:
        what = "token in {:.2%} of places" if spread else "top class in {:.2%} of rows"
        text = f"has the same {what.format(agreement)}, below {tolerance.min_agreement:.0%}"
        failed = [(found[0][0], Difference("numeric", False, text))]
    worst_case = failed[0][0] if failed else _worst(judged)
    parity = OutputParity(
        name=name,
        method=method,
        max_abs=_most(d.max_abs for _, _, d in found),
        max_rel=_most(d.max_rel for _, _, d in found),
        cosine=_least(d.cosine for _, _, d in judged),
        agreement=agreement,
        kl=kl,
        passed=not failed,
        worst_case=worst_case,
    )
    return parity, f"Output {name!r} {failed[0][1].why} in case {failed[0][0]}." if failed else ""


def _worst(found: Sequence[tuple[str, bool, Difference]]) -> str | None:
    if not found:
        return None
    return max(found, key=lambda item: (item[2].max_abs or 0.0, -(item[2].agreement or 0.0)))[0]


def _most(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return max(known, default=None)


def _least(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return min(known, default=None)
