"""Which values the columns of a scikit-learn estimator take: categories, scales, texts, thresholds, remembered rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from converters.arrays import Array, plain
from converters.boosting_sklearn import domain_of, library_of
from converters.domain import Domain
from converters.sentences import SENTENCES
from converters.sklearn_steps import is_vectoriser, leading, steps_of, vectorisers
from schemas.descriptor import DType

TEXT_INPUT = "text"
"""Name of the one input of a pipeline that begins with a vectoriser."""
UNKNOWN = "a value never seen"
"""A category that no encoder was fitted on."""
_REMEMBERED = 4096
"""Rows of an estimator's memory that samples are near."""


@dataclass(frozen=True)
class Column:
    """One column of the table an estimator was fitted on."""

    name: str
    dtype: DType
    domain: Domain


def columns_of(estimator: Any, width: int) -> tuple[Column, ...]:
    """Return the columns one by one when some are strings; () when the whole table is one matrix of numbers."""
    transformers: list[tuple[Any, list[int]]] = []
    first = steps_of(leading(estimator))[0]
    first = getattr(first, "_preprocessor", None) or first  # HistGradientBoosting's own encoder of categories
    if hasattr(first, "transformers_"):
        indices = getattr(first, "_transformer_to_input_indices", {})
        for name, transformer, _ in first.transformers_:
            transformers.append((transformer, [int(i) for i in indices.get(name, [])]))
    else:
        transformers.append((first, list(range(width))))
    categories: dict[int, Array] = {}
    open_ended: set[int] = set()
    domains: dict[int, Domain] = {}
    texts: dict[int, Domain] = {}
    for transformer, positions in transformers:
        if transformer is None or isinstance(transformer, str):
            continue
        for part in steps_of(transformer):
            if is_vectoriser(part) and positions:
                texts[positions[0]] = _texts(part)
            known = getattr(part, "categories_", None)
            if known is not None and len(known) == len(positions):
                categories.update(zip(positions, (np.asarray(values) for values in known), strict=True))
                open_ended.update(positions if _takes_unknown(part) else ())
            scale = _scaled(part)
            if scale.centre is not None and scale.spread is not None and len(scale.centre) == len(positions):
                for at, position in enumerate(positions):
                    domains[position] = Domain(centre=scale.centre[at : at + 1], spread=scale.spread[at : at + 1])
    if not texts and not any(values.dtype.kind in "OUS" for values in categories.values()):
        return ()
    named = next((part for part in (estimator, first) if hasattr(part, "feature_names_in_")), None)
    names = [str(name) for name in named.feature_names_in_] if named is not None else []
    names = names or [f"column_{i}" for i in range(width)]
    if is_vectoriser(first):
        names = [TEXT_INPUT]
    columns = []
    for position in range(width):
        values = categories.get(position)
        dtype: DType = "float32"
        domain = domains.get(position, Domain())
        if position in texts:
            dtype, domain = "string", texts[position]
        elif values is not None:
            known_values = [v for v in values if isinstance(v, str) or not _is_nan(v)]
            if values.dtype.kind in "OUS" and position in open_ended:
                known_values.append(UNKNOWN)
            if values.dtype.kind in "OUS":
                dtype, domain = "string", Domain(choices=plain(np.array(known_values, dtype=object)))
            else:
                dtype = "int64" if values.dtype.kind in "iu" else "float32"
                domain = Domain(choices=np.asarray(values))
        columns.append(Column(names[position], dtype, domain))
    return tuple(columns)


def _takes_unknown(encoder: Any) -> bool:
    """Whether an encoder has an answer for a category that it was not fitted on."""
    how = getattr(encoder, "handle_unknown", None)
    return how in ("ignore", "infrequent_if_exist", "use_encoded_value", "warn") or hasattr(encoder, "target_mean_")


def _is_nan(value: Any) -> bool:
    return value is None or (isinstance(value, float) and bool(np.isnan(value)))


def matrix_domain(estimator: Any) -> Domain:
    """Return where the features of one matrix of numbers lie; those with categories have those alone."""
    estimator = leading(estimator)
    scaled = _scaled(estimator)
    first = steps_of(estimator)[0]
    transformers = [("", first, None)]
    indices: Mapping[str, Any] = {}
    if hasattr(first, "transformers_"):
        transformers, indices = first.transformers_, getattr(first, "_transformer_to_input_indices", {})
    found: dict[int, Array] = {}
    for name, transformer, _ in transformers:
        part = None if transformer is None or isinstance(transformer, str) else steps_of(transformer)[0]
        known = getattr(part, "categories_", None)
        counts = getattr(part, "n_categories_", None)
        if known is None and counts is not None:
            known = [np.arange(count) for count in counts]
        if known is not None:
            positions = [int(i) for i in indices[name]] if name in indices else list(range(len(known)))
            found.update(zip(positions, (np.asarray(values, dtype=np.float64) for values in known), strict=False))
    columns = tuple(found.get(position) for position in range(max(found, default=-1) + 1)) or scaled.columns
    return replace(scaled, columns=columns, positive=_positive_only(first))


def _positive_only(first: Any) -> bool:
    from sklearn.utils import get_tags

    try:
        return bool(get_tags(first).input_tags.positive_only) or getattr(first, "method", "") == "box-cox"
    except (AttributeError, TypeError):
        return False


def _scaled(estimator: Any) -> Domain:
    """Return where the features lie: a scaler's mean and spread, or the range of a forest's thresholds."""
    for part in steps_of(estimator):
        mean, scale = getattr(part, "mean_", None), getattr(part, "scale_", None)
        if isinstance(mean, np.ndarray) and isinstance(scale, np.ndarray) and mean.shape == scale.shape:
            return Domain(centre=mean, spread=scale)
        low, high = getattr(part, "data_min_", None), getattr(part, "data_max_", None)
        if isinstance(low, np.ndarray) and isinstance(high, np.ndarray):
            return Domain(centre=(low + high) / 2, spread=np.maximum((high - low) / 4, 1e-6))
        if library_of(part) is not None:
            return domain_of(part) or Domain()
        thresholds = _thresholds(part) or _remembered(part)
        if thresholds is not None:
            return thresholds
        if part is not estimator and type(part).__name__ != "SimpleImputer":
            break
    return Domain()


def _remembered(part: Any) -> Domain | None:
    """Return where the rows lie that an estimator keeps: its training data, support vectors or centres.

    Far from them a kernel is zero and a neighbour is none, and every candidate would agree.
    """
    for name in ("_fit_X", "X_train_", "support_vectors_", "cluster_centers_", "means_", "theta_"):
        rows = getattr(part, name, None)
        if isinstance(rows, np.ndarray) and rows.ndim == 2 and rows.shape[1] == getattr(part, "n_features_in_", 0):
            rows = rows.astype(np.float64)
            if len(rows) > 1 and np.isfinite(rows).all():
                return Domain(centre=rows.mean(0), spread=np.maximum(rows.std(0), 1e-6), rows=rows[:_REMEMBERED])
    return None


def _thresholds(part: Any) -> Domain | None:
    members = np.asarray(getattr(part, "estimators_", [part]), dtype=object).reshape(-1)
    trees = [member for member in members if hasattr(member, "tree_")]
    width = getattr(part, "n_features_in_", 0)
    if not trees or not width:
        return None
    centre, spread = np.zeros(width), np.ones(width)
    features = np.concatenate([t.tree_.feature for t in trees[:50]])
    values = np.concatenate([t.tree_.threshold for t in trees[:50]])
    # A split that only asks whether the value is missing has an infinite threshold.
    features[~np.isfinite(values)] = -1
    # The trees of a chain split on what the trees before them said, too.
    features[features >= width] = -1
    for feature in np.unique(features[features >= 0]):
        mine = values[features == feature]
        centre[feature], spread[feature] = mine.mean(), max(float(mine.std()), 1e-3)
    return Domain(centre=centre, spread=spread)


def _texts(part: Any) -> Domain:
    """Return texts of words that the vectorisers know, mixed with the built-in sentences, whose words they may not."""
    words = sorted({word for each in vectorisers(part) for word in getattr(each, "vocabulary_", {})})
    rng = np.random.default_rng(0)
    known = [" ".join(rng.choice(words, size=int(rng.integers(1, 12)))) for _ in range(64)] if words else []
    return Domain(choices=plain(np.array([*known, *SENTENCES], dtype=object)))
