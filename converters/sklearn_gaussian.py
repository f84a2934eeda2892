"""GaussianProcessClassifier: skl2onnx solves a system of equations in the graph, for which onnxruntime has no operator.

The system is the training data's own, so that its inverse is a constant. Everything up to the latent mean and variance
is float64, as the variance is the small difference of two numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from converters.boosting_sklearn import Container
from converters.sklearn_extra import give

_DOUBLE, _FLOAT = 11, 1
_TERMS = 24
"""Of the polynomial in the error function: the error is 2e-15, and no more terms lower it."""


def register() -> None:
    """Make skl2onnx use this converter; again and again does no harm."""
    from skl2onnx import update_registered_converter
    from skl2onnx.common._registration import get_shape_calculator
    from sklearn.gaussian_process import GaussianProcessClassifier

    alias = "SklearnGaussianProcessClassifier"
    update_registered_converter(
        GaussianProcessClassifier, alias, get_shape_calculator(alias), _convert, overwrite=True,
        options={"optim": [None, "cdist"], "zipmap": [True, False, "columns"], "nocl": [True, False],
                 "output_class_labels": [False, True]},
    )  # fmt: skip


def _convert(scope: Any, operator: Any, container: Any) -> None:
    model = operator.raw_operator
    writer = Container(scope, container)
    members = getattr(model.base_estimator_, "estimators_", [model.base_estimator_])
    if len(members) > 1 and model.multi_class != "one_vs_rest":
        raise RuntimeError("GaussianProcessClassifier gives no probabilities when it is fitted one_vs_one.")
    chances = [_chance(writer, operator, member) for member in members]
    one = writer.constant(np.ones((1, 1)))
    if len(chances) == 1:
        latent, chance = chances[0]
        zero = writer.constant(np.zeros((1, 1)))
        place = writer.node("Cast", [writer.node("Greater", [latent, zero])], to=7)
        shares = writer.node("Concat", [writer.node("Sub", [one, chance]), chance], axis=1)
    else:
        each = writer.node("Concat", [chance for _, chance in chances], axis=1)
        place = writer.node("ArgMax", [each], axis=1, keepdims=1)
        total = writer.node("ReduceSum", [each, writer.constant(np.array([1], np.int64))], keepdims=1)
        shares = writer.node("Div", [each, total])
    classes = np.asarray(model.classes_)
    classes = classes.astype(str) if classes.dtype.kind in "OUS" else classes.astype(np.int64)
    label = writer.node("Gather", [writer.constant(classes), place], axis=0)
    give(writer, writer.node("Reshape", [label, writer.constant(np.array([-1], np.int64))]), operator)
    give(writer, writer.node("Cast", [shares], to=_FLOAT), operator, 1)


def _chance(writer: Container, operator: Any, member: Any) -> tuple[str, str]:
    """Return the latent mean and the second class's probability of one binary model, both (rows, 1) and float64.

    Source: Rasmussen and Williams, Gaussian Processes for Machine Learning, algorithm 3.2; Williams and Barber's
    approximation of the logistic sigmoid by five error functions.
    """
    from skl2onnx.algebra.onnx_ops import OnnxCast
    from skl2onnx.operator_converters._gp_kernels import convert_kernel, convert_kernel_diag
    from sklearn.gaussian_process._gpc import COEFS, LAMBDAS

    scope, container, version = writer.scope, writer.container, writer.container.target_opset
    latent_of = (member.y_train_ - member.pi_).astype(np.float64)[:, None]
    # solve(L, W * K) with L's inverse taken here. L is the Cholesky factor of I + W K W, so that no eigenvalue of it is
    # below one and its inverse is exact to the last bits.
    solved = np.linalg.solve(np.asarray(member.L_, np.float64), np.diag(np.asarray(member.W_sr_, np.float64)))
    table = OnnxCast(operator.inputs[0], to=_DOUBLE, op_version=version)
    near, spread = (scope.get_unique_variable_name(name) for name in ("kernel", "kernel_diagonal"))
    convert_kernel(
        member.kernel_, table, x_train=np.asarray(member.X_train_, np.float64), dtype=np.float64, op_version=version,
        output_names=[near],
    ).add_to(scope, container)  # fmt: skip
    convert_kernel_diag(
        member.kernel_, table, dtype=np.float64, op_version=version, output_names=[spread]
    ).add_to(scope, container)  # fmt: skip

    def number(value: Any) -> str:
        return writer.constant(np.atleast_2d(np.asarray(value, np.float64)))

    def node(operator_name: str, *inputs: str) -> str:
        return writer.node(operator_name, inputs)

    axes = writer.constant(np.array([1], np.int64))
    latent = node("MatMul", near, writer.constant(latent_of))
    explained = node("MatMul", near, writer.constant(np.ascontiguousarray(solved.T)))
    explained = writer.node("ReduceSum", [node("Mul", explained, explained), axes], keepdims=1)
    column = writer.constant(np.array([-1, 1], np.int64))
    variance = node("Sub", node("Reshape", spread, column), explained)
    # sqrt(pi / alpha) / (2 * sqrt(2 * pi * variance)) is a half, for alpha is 1 / (2 * variance).
    alpha = node("Div", number(0.5), variance)
    slope = node("Sqrt", node("Div", alpha, node("Add", alpha, number(np.ravel(LAMBDAS) ** 2))))
    inner = node("Mul", node("Mul", latent, number(np.ravel(LAMBDAS))), slope)
    summed = node("Mul", _erf(writer, inner), number(np.ravel(COEFS) / 2))
    summed = writer.node("ReduceSum", [summed, axes], keepdims=1)
    return latent, node("Add", summed, number(0.5 * float(np.sum(COEFS))))


def _erf(writer: Container, value: str) -> str:
    """Write the error function of a (rows, n) table in float64, within 1e-14.

    onnxruntime has it in float32 only, and here it is multiplied by thousands that cancel out. Source: Numerical
    Recipes, third edition, 6.2.2: erfc(z) = t exp(-z^2 + P(t)) with t = 2 / (2 + z) and z above zero.
    """
    from numpy.polynomial import chebyshev
    from scipy.special import erfcx

    def logged(place: Any) -> Any:
        t = (place + 1) / 2
        return np.log(erfcx(2 / t - 2) / t)

    terms = chebyshev.cheb2poly(chebyshev.chebinterpolate(logged, _TERMS - 1))
    one, two = writer.constant(np.ones((1, 1))), writer.constant(np.full((1, 1), 2.0))
    z = writer.node("Abs", [value])
    t = writer.node("Div", [two, writer.node("Add", [two, z])])
    place = writer.node("Sub", [writer.node("Mul", [t, two]), one])
    last = writer.constant(np.array([-1], np.int64))
    powers = writer.node("Pow", [writer.node("Unsqueeze", [place, last]), writer.constant(np.arange(_TERMS) * 1.0)])
    curve = writer.node("MatMul", [powers, writer.constant(np.asarray(terms)[:, None])])
    curve = writer.node("Squeeze", [curve, last])
    tail = writer.node("Mul", [t, writer.node("Exp", [writer.node("Sub", [curve, writer.node("Mul", [z, z])])])])
    return writer.node("Mul", [writer.node("Sign", [value]), writer.node("Sub", [one, tail])])
