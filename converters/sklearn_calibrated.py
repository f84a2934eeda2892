"""CalibratedClassifierCV: what its classifiers say, made probabilities as scikit-learn makes it.

skl2onnx takes the nearest step of an isotonic calibration where scikit-learn draws a line between two, takes the
probabilities of a pipeline that is calibrated by its decision function, and has no temperature.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from converters.boosting_sklearn import Container
from converters.sklearn_extra import class_labels, give
from converters.sklearn_frozen import thawed

_ALIAS = "ModeliumCalibrated"
_OPTIONS = {"zipmap": [True, False, "columns"], "nocl": [True, False], "output_class_labels": [False, True]}
_EPSILON = 1e-12
"""What scikit-learn adds to a probability before it takes the logarithm."""


def register() -> None:
    """Make skl2onnx use these converters; again and again does no harm."""
    from skl2onnx import update_registered_converter
    from sklearn.calibration import CalibratedClassifierCV

    update_registered_converter(
        CalibratedClassifierCV, _ALIAS, _shape, _convert, parser=_parse, options=_OPTIONS, overwrite=True
    )


def _opened(estimator: Any) -> Any:
    """Return the estimator that a frozen one or a search stands for."""
    found = thawed(estimator)
    return _opened(found.best_estimator_) if hasattr(found, "best_estimator_") else found


def _decides(estimator: Any) -> bool:
    """Whether it is calibrated by its decision function rather than its probabilities."""
    return hasattr(estimator, "decision_function")


def _parse(scope: Any, model: Any, inputs: Any, custom_parsers: Any = None) -> Any:
    from skl2onnx.common.data_types import FloatTensorType

    operator = scope.declare_local_operator(_ALIAS, model)
    operator.inputs.extend(inputs)
    for name in ("label", "probabilities"):
        operator.outputs.append(scope.declare_local_variable(name, FloatTensorType()))
    return operator.outputs


def _shape(operator: Any) -> None:
    from skl2onnx.common.data_types import FloatTensorType, Int64TensorType, StringTensorType

    classes = np.asarray(operator.raw_operator.classes_)
    operator.outputs[0].set_type((StringTensorType if classes.dtype.kind in "OUS" else Int64TensorType)([None]))
    operator.outputs[1].set_type(FloatTensorType([None, len(classes)]))


def _convert(scope: Any, operator: Any, container: Any) -> None:
    model = operator.raw_operator
    write = _Writer(Container(scope, container))
    given = [
        _calibrated(write, calibrated, _scores(scope, container, operator, calibrated.estimator))
        for calibrated in model.calibrated_classifiers_
    ]
    probabilities = given[0] if len(given) == 1 else write("Mean", *given)
    best = write("ArgMax", probabilities, axis=1, keepdims=0)
    labels = write.container.constant(class_labels(model.classes_))
    give(write.container, write("Gather", labels, best, axis=0), operator)
    give(write.container, probabilities, operator, 1)


def _scores(scope: Any, container: Any, operator: Any, estimator: Any) -> str:
    """Declare the classifier with all that it is made of; return what it is calibrated by, float32."""
    from skl2onnx._parse import _parse_sklearn
    from skl2onnx._supported_operators import sklearn_operator_name_map
    from skl2onnx.common._registration import get_converter

    from converters.sklearn_onnx import use_equivalents

    inner = last = _opened(estimator)
    use_equivalents(inner)
    parts = [inner]
    while hasattr(last, "steps"):
        last = _opened(last.steps[-1][1])
        parts.append(last)
    alias = sklearn_operator_name_map.get(type(last))
    known = get_converter(alias).get_allowed_options() or {} if alias is not None else {}
    if _decides(inner) and "raw_scores" not in known:
        raise RuntimeError(f"The decision function of {type(last).__name__} has no form in ONNX.")
    for part in parts:
        wanted = {"zipmap": False, "raw_scores": _decides(inner)} if part is last else {"zipmap": False}
        for options in (scope, container):
            options.add_options(id(part), {name: value for name, value in wanted.items() if name in known})
    _, said = _parse_sklearn(scope, inner, operator.inputs)
    return Container(scope, container).node("Cast", [said.full_name], to=1)


class _Writer:
    """Nodes whose numbers are float32."""

    def __init__(self, container: Container) -> None:
        self.container = container

    def __call__(self, operator: str, *inputs: str, **attributes: Any) -> str:
        return self.container.node(operator, inputs, **attributes)

    def numbers(self, values: Any) -> str:
        return self.container.constant(np.asarray(values, dtype=np.float32))

    def places(self, values: Any) -> str:
        return self.container.constant(np.asarray(values, dtype=np.int64))


def _calibrated(write: _Writer, calibrated: Any, scores: str) -> str:
    """Return the probabilities, [rows, classes], that one calibrated classifier makes of what its estimator said."""
    estimator, classes = calibrated.estimator, np.asarray(calibrated.classes)
    if calibrated.method == "temperature":
        return _cooled(write, calibrated, scores, len(classes))
    if len(classes) == 2:
        yes = _line(write, calibrated.calibrators[0], write("Gather", scores, write.places([-1]), axis=1))
        return write("Concat", write("Sub", write.numbers(1), yes), yes, axis=1)
    places = np.searchsorted(classes, np.asarray(estimator.classes_))
    columns = {
        int(place): _line(write, calibrator, write("Gather", scores, write.places([column]), axis=1))
        for column, (place, calibrator) in enumerate(zip(places, calibrated.calibrators, strict=True))
    }
    # A class that this classifier was not fitted on has no probability here.
    nothing = write("Mul", next(iter(columns.values())), write.numbers(0))
    table = write("Concat", *(columns.get(place, nothing) for place in range(len(classes))), axis=1)
    total = write("ReduceSum", table, write.places([1]), keepdims=1)
    empty = write("Equal", total, write.numbers(0))
    shares = write("Div", table, write("Where", empty, write.numbers(1), total))
    return write("Where", empty, write.numbers(1 / len(classes)), shares)


def _cooled(write: _Writer, calibrated: Any, scores: str, classes: int) -> str:
    if not _decides(thawed(calibrated.estimator)):
        scores = write("Log", write("Add", scores, write.numbers(_EPSILON)))
    elif classes == 2:
        second = write("Gather", scores, write.places([-1]), axis=1)
        scores = write("Concat", write("Neg", second), second, axis=1)
    return write("Softmax", write("Mul", scores, write.numbers(float(calibrated.calibrators[0].beta_))), axis=1)


def _line(write: _Writer, calibrator: Any, score: str) -> str:
    """Return the probability that a sigmoid or an isotonic regression gives a column of scores."""
    if hasattr(calibrator, "a_"):
        bent = write("Add", write("Mul", score, write.numbers(calibrator.a_)), write.numbers(calibrator.b_))
        return write("Sigmoid", write("Neg", bent))
    at = np.asarray(calibrator.X_thresholds_, dtype=np.float64)
    values = np.asarray(calibrator.y_thresholds_, dtype=np.float64)
    if len(at) == 1:
        return write("Add", write("Mul", score, write.numbers(0)), write.numbers(values[0]))
    score = write("Max", write("Min", score, write.numbers(at[-1])), write.numbers(at[0]))
    reached = write("Cast", write("LessOrEqual", write.numbers(at[None, 1:-1]), score), to=7)
    place = write("ReduceSum", reached, write.places([1]), keepdims=1)
    slopes = np.diff(values) / np.diff(at)
    begin, value, slope = (write("Gather", write.numbers(table), place) for table in (at, values, slopes))
    return write("Add", value, write("Mul", write("Sub", score, begin), slope))
