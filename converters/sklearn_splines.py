"""SplineTransformer: the base of splines written out as polynomials, one for each stretch between two knots."""

from __future__ import annotations

from typing import Any

import numpy as np

from converters.arrays import Array
from converters.boosting_sklearn import Container
from converters.sklearn_extra import give, joined_inputs

_DOUBLE, _FLOAT, _INT64 = 11, 1, 7


def register() -> None:
    """Make skl2onnx use this converter; again and again does no harm."""
    from skl2onnx import update_registered_converter
    from sklearn.preprocessing import SplineTransformer

    update_registered_converter(SplineTransformer, "ModeliumSplineTransformer", _shape, _convert, overwrite=True)


def _shape(operator: Any) -> None:
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType

    wide = all(isinstance(variable.type, DoubleTensorType) for variable in operator.inputs)
    operator.outputs[0].set_type(
        (DoubleTensorType if wide else FloatTensorType)([None, operator.raw_operator.n_features_out_])
    )


def _convert(scope: Any, operator: Any, container: Any) -> None:
    model = operator.raw_operator
    if model.extrapolation not in ("constant", "linear", "continue"):
        raise RuntimeError(f"SplineTransformer with extrapolation={model.extrapolation!r} is not converted.")
    if model.degree < 1 or (model.degree < 2 and model.extrapolation == "linear"):
        # scikit-learn mixes up the splines of all features but the first there.
        raise RuntimeError(f"SplineTransformer of degree {model.degree} is not converted with this extrapolation.")
    writer = Container(scope, container)
    table, kind = joined_inputs(operator, writer)
    table = writer.node("Cast", [table], to=_DOUBLE)
    bases = []
    for feature, spline in enumerate(model.bsplines_):
        x = writer.node("Gather", [table, writer.constant(np.array([feature], np.int64))], axis=1)
        bases.append(_base(writer, x, spline, model))
    joined = bases[0] if len(bases) == 1 else writer.node("Concat", bases, axis=1)
    give(writer, writer.node("Cast", [joined], to=_DOUBLE if kind is np.float64 else _FLOAT), operator)


def _base(writer: Container, x: str, spline: Any, model: Any) -> str:
    """Return what each spline of the base is at ``x``, (rows, 1)."""
    knots, pieces = _pieces(spline, model)
    low, high = (writer.constant(np.array(knots[at])) for at in (0, -1))
    inside = writer.node("Max", [writer.node("Min", [x, high]), low])
    where = inside if model.extrapolation != "continue" else x
    # The knots that a row has passed tell the stretch that it is on.
    passed = writer.node("Not", [writer.node("Less", [where, writer.constant(knots[None, 1:-1])])])
    axis = writer.constant(np.array([1], np.int64))
    stretch = writer.node("ReduceSum", [writer.node("Cast", [passed], to=_INT64), axis], keepdims=0)
    start = writer.node("Gather", [writer.constant(knots[:-1, None]), stretch], axis=0)
    behind = writer.node("Sub", [where, start])
    value = _polynomial(writer, pieces, stretch, behind)
    if model.extrapolation == "linear":
        powers = np.arange(len(pieces) - 1, 0, -1)[:, None, None]
        slope = _polynomial(writer, pieces[:-1] * powers, stretch, behind)
        value = writer.node("Add", [value, writer.node("Mul", [slope, writer.node("Sub", [x, inside])])])
    return value


def _polynomial(writer: Container, pieces: Array, stretch: str, x: str) -> str:
    """Return the polynomial of each row's stretch at ``x``; ``pieces`` is (degree + 1, stretches, splines)."""
    value = writer.node("Gather", [writer.constant(pieces[0]), stretch], axis=0)
    for piece in pieces[1:]:
        term = writer.node("Gather", [writer.constant(piece), stretch], axis=0)
        value = writer.node("Add", [writer.node("Mul", [value, x]), term])
    return value


def _pieces(spline: Any, model: Any) -> tuple[Array, Array]:
    """Return the knots within which rows were seen, and the coefficients between them, the highest power first."""
    from scipy.interpolate import BSpline, PPoly

    degree, knots = model.degree, np.asarray(spline.t, np.float64)
    columns = np.asarray(spline.c, np.float64)
    if not model.include_bias:
        columns = columns[:, :-1]
    seen = slice(degree, len(knots) - degree)
    pieces = [
        PPoly.from_spline(BSpline(knots, column, degree)).c[:, degree : len(knots) - degree - 1] for column in columns.T
    ]
    return knots[seen], np.stack(pieces, axis=-1)
