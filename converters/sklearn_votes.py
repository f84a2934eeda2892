"""VotingClassifier and BaggingClassifier: members of any kind, their labels counted or their probabilities averaged.

skl2onnx gives the votes of a bag one row for each member, and takes a pipeline's options for its last step's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from converters.boosting_sklearn import asks_scores
from converters.sklearn_extra import give
from converters.sklearn_members import OPTIONS, Writer, columns, declare, give_label, said, shape
from converters.sklearn_steps import opened


def register() -> None:
    """Make skl2onnx use these converters; again and again does no harm."""
    from skl2onnx import update_registered_converter
    from sklearn.ensemble import BaggingClassifier, VotingClassifier

    for cls, convert in ((VotingClassifier, _voting), (BaggingClassifier, _bagging)):
        alias = f"Modelium{cls.__name__}"
        update_registered_converter(cls, alias, shape, convert, parser=declare(alias), options=OPTIONS, overwrite=True)


def _voting(scope: Any, operator: Any, container: Any) -> None:
    model = operator.raw_operator
    write, classes = Writer(scope, container), len(model.classes_)
    weights = model._weights_not_none
    weights = np.ones(len(model.estimators_)) if weights is None else np.asarray(weights, dtype=np.float64)
    shares = []
    for member in model.estimators_:
        told = said(scope, container, operator.inputs, member, raw=False)
        shares.append(told.scores if model.voting == "soft" else _votes(write, told.label, np.arange(classes)))
    _finish(write, operator, shares, weights / weights.sum() if model.voting == "soft" else weights)


def _bagging(scope: Any, operator: Any, container: Any) -> None:
    model = operator.raw_operator
    write, classes, raw = Writer(scope, container), len(model.classes_), asks_scores(container, model)
    shares, decisions = [], []
    for member, features in zip(model.estimators_, model.estimators_features_, strict=True):
        every = np.array_equal(features, np.arange(model.n_features_in_))
        inputs = operator.inputs if every else columns(scope, container, operator.inputs, features)
        if raw:
            decisions.append(write.table(said(scope, container, inputs, member, raw=True).scores))
        told = said(scope, container, inputs, member, raw=False)
        # Members were fitted on the places of the classes, and one may not have met them all.
        known = np.asarray(opened(member).classes_).astype(np.int64)
        if not hasattr(member, "predict_proba"):
            shares.append(_votes(write, told.label, np.arange(classes)))
        elif len(known) == classes:
            shares.append(told.scores)
        else:
            spread = np.zeros((len(known), classes))
            spread[np.arange(len(known)), known] = 1
            shares.append(write("MatMul", told.scores, write.numbers(spread)))
    _finish(write, operator, shares, np.full(len(shares), 1 / len(shares)), decisions)


def _votes(write: Writer, label: str, classes: Any) -> str:
    """Return 1 for the class that each row's label is, and 0 for all others."""
    return write("Cast", write("Equal", write.upright(label), write.places(classes)), to=1)


def _finish(write: Writer, operator: Any, shares: list[str], weights: Any, decisions: Sequence[str] = ()) -> None:
    """Give the label that has most of ``shares``, and beside it the shares or the mean of ``decisions``."""
    weighed = [write("Mul", share, write.numbers(weight)) for share, weight in zip(shares, weights, strict=True)]
    total = weighed[0] if len(weighed) == 1 else write("Sum", *weighed)
    best = write("ArgMax", total, axis=1, keepdims=0)
    give_label(write, operator, best)
    give(write.container, write("Mean", *decisions) if decisions else total, operator, 1)
