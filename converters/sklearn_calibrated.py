"""CalibratedClassifierCV: what its classifiers say, made probabilities as scikit-learn makes it.

skl2onnx takes the nearest step of an isotonic calibration where scikit-learn draws a line between two, takes the
probabilities of a pipeline that is calibrated by its decision function, and has no temperature.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from converters.sklearn_extra import give
from converters.sklearn_members import Writer, decides, declare, give_label, said, shape
from converters.sklearn_steps import opened

_ALIAS = "ModeliumCalibrated"
_OPTIONS = {"zipmap": [True, False, "columns"], "nocl": [True, False], "output_class_labels": [False, True]}
_EPSILON = 1e-12
"""What scikit-learn adds to a probability before it takes the logarithm."""


def register() -> None:
    """Make skl2onnx use these converters; again and again does no harm."""
    from skl2onnx import update_registered_converter
    from sklearn.calibration import CalibratedClassifierCV

    update_registered_converter(
        CalibratedClassifierCV, _ALIAS, shape, _convert, parser=declare(_ALIAS), options=_OPTIONS, overwrite=True
    )


def _convert(scope: Any, operator: Any, container: Any) -> None:
    model = operator.raw_operator
    write = Writer(scope, container)
    given = []
    for calibrated in model.calibrated_classifiers_:
        raw = decides(opened(calibrated.estimator))
        scores = said(scope, container, operator.inputs, calibrated.estimator, raw=raw).scores
        given.append(_calibrated(write, calibrated, scores))
    probabilities = given[0] if len(given) == 1 else write("Mean", *given)
    best = write("ArgMax", probabilities, axis=1, keepdims=0)
    give_label(write, operator, best)
    give(write.container, probabilities, operator, 1)


def _calibrated(write: Writer, calibrated: Any, scores: str) -> str:
    """Return the probabilities, [rows, classes], that one calibrated classifier makes of what its estimator said."""
    estimator, classes = calibrated.estimator, np.asarray(calibrated.classes)
    if calibrated.method == "temperature":
        return _cooled(write, calibrated, scores, len(classes))
    if len(classes) == 2:
        yes = _line(write, calibrated.calibrators[0], write.last(scores))
        return write("Concat", write("Sub", write.numbers(1), yes), yes, axis=1)
    places = np.searchsorted(classes, np.asarray(estimator.classes_))
    if len(places) == 2:  # one that met two of several classes says one number, which scikit-learn takes for the first
        said_columns = [write.last(scores)]
    else:
        said_columns = [write.column(scores, number) for number in range(len(places))]
    columns = {
        int(place): _line(write, calibrator, column)
        for place, calibrator, column in zip(places, calibrated.calibrators, said_columns, strict=False)
    }
    # A class that this classifier was not fitted on has no probability here.
    nothing = write("Mul", next(iter(columns.values())), write.numbers(0))
    table = write("Concat", *(columns.get(place, nothing) for place in range(len(classes))), axis=1)
    total = write("ReduceSum", table, write.places([1]), keepdims=1)
    empty = write("Equal", total, write.numbers(0))
    shares = write("Div", table, write("Where", empty, write.numbers(1), total))
    return write("Where", empty, write.numbers(1 / len(classes)), shares)


def _cooled(write: Writer, calibrated: Any, scores: str, classes: int) -> str:
    if not decides(opened(calibrated.estimator)):
        scores = write("Log", write("Add", scores, write.numbers(_EPSILON)))
    elif classes == 2:
        second = write.last(scores)
        scores = write("Concat", write("Neg", second), second, axis=1)
    return write("Softmax", write("Mul", scores, write.numbers(float(calibrated.calibrators[0].beta_))), axis=1)


def _line(write: Writer, calibrator: Any, score: str) -> str:
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
