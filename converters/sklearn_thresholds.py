"""FixedThresholdClassifier and TunedThresholdClassifierCV: a classifier of any kind, and the score that decides.

skl2onnx takes the second for the classifier inside it and forgets what was tuned; it has none for the first.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from converters.sklearn_extra import give
from converters.sklearn_members import OPTIONS, Writer, declare, give_label, said, shape


def register() -> None:
    """Make skl2onnx use these converters; again and again does no harm."""
    from skl2onnx import update_registered_converter
    from sklearn.model_selection import FixedThresholdClassifier, TunedThresholdClassifierCV

    for cls in (FixedThresholdClassifier, TunedThresholdClassifierCV):
        alias = f"Modelium{cls.__name__}"
        update_registered_converter(cls, alias, shape, _convert, parser=declare(alias), options=OPTIONS, overwrite=True)


def _inner(model: Any) -> Any:
    return getattr(model, "estimator_", model.estimator)


def _convert(scope: Any, operator: Any, container: Any) -> None:
    model = operator.raw_operator
    if model.response_method == "decision_function" or not hasattr(_inner(model), "predict_proba"):
        raise RuntimeError(f"{type(model).__name__} is converted where probabilities decide.")
    write = Writer(scope, container)
    scorer = getattr(model, "_curve_scorer", None)
    wanted = scorer._get_pos_label() if scorer is not None else model.pos_label
    place = 1 if wanted is None else int(np.flatnonzero(np.asarray(model.classes_) == wanted)[0])
    threshold = getattr(model, "best_threshold_", getattr(model, "threshold", None))
    probabilities = said(scope, container, operator.inputs, _inner(model), raw=False).scores
    over = write("Not", write("Less", write.column(probabilities, place), write.numbers(_limit(threshold))))
    yes = write("Reshape", over, write.places([-1]))
    give_label(write, operator, write("Where", yes, write.places(place), write.places(1 - place)))
    give(write.container, probabilities, operator, 1)


def _limit(threshold: Any) -> float:
    return 0.5 if threshold == "auto" else float(threshold)
