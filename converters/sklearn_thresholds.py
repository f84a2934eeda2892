"""FixedThresholdClassifier and TunedThresholdClassifierCV: a classifier of any kind, and the score that decides.

skl2onnx takes the second for the classifier inside it and forgets what was tuned; it has none for the first.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from converters.boosting_sklearn import Container
from converters.sklearn_extra import class_labels, give

_OPTIONS = {"zipmap": [True, False, "columns"], "nocl": [True, False], "output_class_labels": [False, True]}


def register() -> None:
    """Make skl2onnx use these converters; again and again does no harm."""
    from skl2onnx import update_registered_converter
    from sklearn.model_selection import FixedThresholdClassifier, TunedThresholdClassifierCV

    for cls in (FixedThresholdClassifier, TunedThresholdClassifierCV):
        update_registered_converter(
            cls, f"Modelium{cls.__name__}", _shape, _convert, parser=_parse, options=_OPTIONS, overwrite=True
        )


def _inner(model: Any) -> Any:
    return getattr(model, "estimator_", model.estimator)


def _parse(scope: Any, model: Any, inputs: Any, custom_parsers: Any = None) -> Any:
    """Declare the classifier with all that it is made of, and behind it an operator that decides by its scores."""
    from skl2onnx._parse import parse_sklearn
    from skl2onnx.common.data_types import FloatTensorType

    scope.add_options(id(_inner(model)), {"zipmap": False})
    said = parse_sklearn(scope, _inner(model), inputs, custom_parsers=custom_parsers)
    for variable in said:
        variable.init_status(is_leaf=False)
    operator = scope.declare_local_operator(f"Modelium{type(model).__name__}", model)
    operator.inputs.append(said[1])
    for name in ("label", "probabilities"):
        operator.outputs.append(scope.declare_local_variable(name, FloatTensorType()))
    return operator.outputs


def _shape(operator: Any) -> None:
    from skl2onnx.common.data_types import Int64TensorType, StringTensorType

    strings = np.asarray(operator.raw_operator.classes_).dtype.kind in "OUS"
    operator.outputs[0].set_type((StringTensorType if strings else Int64TensorType)([None]))
    operator.outputs[1].set_type(type(operator.inputs[0].type)([None, 2]))


def _convert(scope: Any, operator: Any, container: Any) -> None:
    from skl2onnx.common.data_types import DoubleTensorType

    model = operator.raw_operator
    if model.response_method == "decision_function" or not hasattr(_inner(model), "predict_proba"):
        raise RuntimeError(f"{type(model).__name__} is converted where probabilities decide.")
    writer = Container(scope, container)
    scorer = getattr(model, "_curve_scorer", None)
    wanted = scorer._get_pos_label() if scorer is not None else model.pos_label
    place = 1 if wanted is None else int(np.flatnonzero(np.asarray(model.classes_) == wanted)[0])
    threshold = getattr(model, "best_threshold_", getattr(model, "threshold", None))
    kind = np.float64 if isinstance(operator.inputs[0].type, DoubleTensorType) else np.float32
    limit = writer.constant(np.array(0.5 if threshold == "auto" else threshold, kind))
    probabilities = operator.inputs[0].full_name
    score = writer.node("Gather", [probabilities, writer.constant(np.array(place, np.int64))], axis=1)
    yes = writer.node("Not", [writer.node("Less", [score, limit])])
    places = writer.node("Where", [yes, *(writer.constant(np.array(n, np.int64)) for n in (place, 1 - place))])
    give(writer, writer.node("Gather", [writer.constant(class_labels(model.classes_)), places], axis=0), operator)
    give(writer, probabilities, operator, 1)
