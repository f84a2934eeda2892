"""Converters that skl2onnx lacks or has for simpler cases: written here and registered with it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from sklearn.impute import SimpleImputer

from converters.arrays import Array
from converters.boosting_sklearn import Container

_UNARY: dict[str, str] = {
    "log": "Log", "exp": "Exp", "sqrt": "Sqrt", "absolute": "Abs", "abs": "Abs", "fabs": "Abs", "sign": "Sign",
    "sin": "Sin", "cos": "Cos", "tan": "Tan", "arcsin": "Asin", "arccos": "Acos", "arctan": "Atan", "sinh": "Sinh",
    "cosh": "Cosh", "tanh": "Tanh", "reciprocal": "Reciprocal", "negative": "Neg", "floor": "Floor", "ceil": "Ceil",
    "rint": "Round", "expit": "Sigmoid",
}  # fmt: skip
_OTHERS = (
    "calibrated", "forests", "frozen", "encoders", "gaussian", "nearest", "radius", "chains", "columns", "discriminant",
    "splines", "projections", "regressors", "stacking", "target", "thresholds", "votes", "one_vs", "words", "hashing",
)  # fmt: skip
"""Modules that register more; they use what is here."""
_MAX_ROUNDS = 4000
"""Regressions of one imputer that are written out."""


def register() -> None:
    """Make skl2onnx use these; again and again does no harm."""
    from skl2onnx import update_registered_converter
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.feature_extraction.text import TfidfTransformer
    from sklearn.impute import IterativeImputer, MissingIndicator
    from sklearn.preprocessing import FunctionTransformer, PowerTransformer

    for cls, alias, convert in (
        (TfidfTransformer, "SklearnTfidfTransformer", _tfidf),
        (FunctionTransformer, "SklearnFunctionTransformer", _function),
        (PowerTransformer, "SklearnPowerTransformer", _power),
        (IterativeImputer, "ModeliumIterativeImputer", _imputer),
        (IndicatingImputer, "ModeliumIndicatingImputer", _indicator),
    ):
        update_registered_converter(cls, alias, _same_shape, convert, overwrite=True)
    update_registered_converter(MissingIndicator, "ModeliumMissingIndicator", _marked_shape, _marked, overwrite=True)
    for name in _OTHERS:
        importlib.import_module(f"converters.sklearn_{name}").register()


class IndicatingImputer(SimpleImputer):  # type: ignore[misc]
    """A SimpleImputer that appends which features were missing; skl2onnx leaves those columns out."""


def mark_indicators(steps: Iterable[Any]) -> None:
    """Turn the imputers of numbers that append indicators into ones that this module converts."""
    for step in steps:
        if type(step) is SimpleImputer and step.add_indicator and np.asarray(step.statistics_).dtype.kind == "f":
            step.__class__ = IndicatingImputer


def joined_inputs(operator: Any, writer: Container) -> tuple[str, type[Any]]:
    """Return one table of all inputs, and its numpy type."""
    from skl2onnx.common.data_types import DoubleTensorType

    wide = all(isinstance(variable.type, DoubleTensorType) for variable in operator.inputs)
    names = [writer.node("Cast", [variable.full_name], to=11 if wide else 1) for variable in operator.inputs]
    return names[0] if len(names) == 1 else writer.node("Concat", names, axis=1), np.float64 if wide else np.float32


def class_labels(classes: Any) -> Array:
    """Return a classifier's classes as ONNX holds labels: strings, or whole numbers of 64 bits."""
    known = np.asarray(classes)
    return known.astype(str) if known.dtype.kind in "OUS" else known.astype(np.int64)


def give(writer: Container, tensor: str, operator: Any, number: int = 0) -> None:
    """Make ``tensor`` output ``number`` of ``operator``."""
    writer.container.add_node(
        "Identity", [tensor], [operator.outputs[number].full_name],
        name=writer.scope.get_unique_operator_name("Identity"), op_version=writer.container.target_opset,
    )  # fmt: skip


def _same_shape(operator: Any) -> None:
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType

    wide = all(isinstance(variable.type, DoubleTensorType) for variable in operator.inputs)
    width = getattr(operator.raw_operator, "n_features_in_", None)
    if width is not None and isinstance(operator.raw_operator, IndicatingImputer):
        width += len(operator.raw_operator.indicator_.features_)
    operator.outputs[0].set_type((DoubleTensorType if wide else FloatTensorType)([None, width]))


def _function(scope: Any, operator: Any, container: Any) -> None:
    """A FunctionTransformer of one of numpy's functions of one number."""
    transformer = operator.raw_operator
    writer = Container(scope, container)
    table, kind = joined_inputs(operator, writer)
    if transformer.kw_args:
        raise RuntimeError("FunctionTransformer passes arguments on, for which ONNX has no operator.")
    give(writer, table if transformer.func is None else applied(writer, table, kind, transformer.func), operator)


def applied(writer: Container, table: str, kind: type[Any], function: Any) -> str:
    """Return what one of numpy's functions of one number makes of ``table``. Raises RuntimeError for any other."""

    def number(value: float) -> str:
        return writer.constant(np.array(value, kind))

    combined: dict[str, Callable[[], str]] = {
        "log1p": lambda: writer.node("Log", [writer.node("Add", [table, number(1)])]),
        "expm1": lambda: writer.node("Sub", [writer.node("Exp", [table]), number(1)]),
        "log2": lambda: writer.node("Div", [writer.node("Log", [table]), number(float(np.log(2)))]),
        "log10": lambda: writer.node("Div", [writer.node("Log", [table]), number(float(np.log(10)))]),
        "exp2": lambda: writer.node("Pow", [number(2), table]),
        "square": lambda: writer.node("Mul", [table, table]),
        "cbrt": lambda: writer.node(
            "Mul",
            [writer.node("Sign", [table]), writer.node("Pow", [writer.node("Abs", [table]), number(1 / 3)])],
        ),
    }
    name = getattr(function, "__name__", "")
    plain = getattr(np, name, None) is function or name == "expit"
    if plain and name in _UNARY:
        return writer.node(_UNARY[name], [table])
    if plain and name in combined:
        return combined[name]()
    raise RuntimeError(f"FunctionTransformer calls {name or function!r}, for which ONNX has no operator.")


def _imputer(scope: Any, operator: Any, container: Any) -> None:
    """An IterativeImputer: a first filling, then one linear regression after another for each feature with gaps."""
    imputer = operator.raw_operator
    writer = Container(scope, container)
    table, kind = joined_inputs(operator, writer)
    rounds = imputer.imputation_sequence_
    if imputer.sample_posterior or imputer.add_indicator or len(rounds) > _MAX_ROUNDS:
        raise RuntimeError("IterativeImputer draws samples, adds an indicator or takes too many rounds.")
    if any(not hasattr(step.estimator, "coef_") for step in rounds):
        raise RuntimeError("IterativeImputer is converted with linear estimators only.")
    first = np.asarray(imputer.initial_imputer_.statistics_, dtype=np.float64)
    if np.isnan(first).any() or not np.isnan(imputer.missing_values):
        raise RuntimeError("IterativeImputer drops features or takes another missing value than NaN.")
    width = len(first)
    missing = writer.node("IsNaN", [table])
    filled = writer.node("Where", [missing, writer.constant(first.astype(kind)[None]), table])
    for step in rounds:
        feature, estimator = int(step.feat_idx), step.estimator
        weights = np.zeros((width, 1))
        weights[np.asarray(step.neighbor_feat_idx, dtype=int), 0] = np.ravel(estimator.coef_)
        guess = writer.node("MatMul", [filled, writer.constant(weights.astype(kind))])
        guess = writer.node("Add", [guess, writer.constant(np.array([[np.ravel(estimator.intercept_)[0]]], kind))])
        low, high = imputer._min_value[feature], imputer._max_value[feature]
        if np.isfinite(low) or np.isfinite(high):
            guess = writer.node("Max", [guess, writer.constant(np.array(low, kind))])
            guess = writer.node("Min", [guess, writer.constant(np.array(high, kind))])
        here = np.zeros((1, width), bool)
        here[0, feature] = True
        where = writer.node("And", [missing, writer.constant(here)])
        filled = writer.node("Where", [where, guess, filled])
    give(writer, filled, operator)


def _marked_shape(operator: Any) -> None:
    from skl2onnx.common.data_types import BooleanTensorType

    operator.outputs[0].set_type(BooleanTensorType([None, len(operator.raw_operator.features_)]))


def _marked(scope: Any, operator: Any, container: Any) -> None:
    """A MissingIndicator: which of the features that may have gaps have one."""
    indicator = operator.raw_operator
    writer = Container(scope, container)
    table, _ = joined_inputs(operator, writer)
    if not isinstance(indicator.missing_values, float) or not np.isnan(indicator.missing_values):
        raise RuntimeError("MissingIndicator takes another missing value than NaN.")
    features = writer.constant(np.asarray(indicator.features_, dtype=np.int64))
    give(writer, writer.node("Gather", [writer.node("IsNaN", [table]), features], axis=1), operator)


def _indicator(scope: Any, operator: Any, container: Any) -> None:
    imputer = operator.raw_operator
    writer = Container(scope, container)
    table, kind = joined_inputs(operator, writer)
    first = np.asarray(imputer.statistics_, dtype=np.float64)
    if np.isnan(first).any() or not np.isnan(imputer.missing_values):
        raise RuntimeError("SimpleImputer drops features or takes another missing value than NaN.")
    missing = writer.node("IsNaN", [table])
    filled = writer.node("Where", [missing, writer.constant(first.astype(kind)[None]), table])
    features = writer.constant(np.asarray(imputer.indicator_.features_, dtype=np.int64))
    shown = writer.node(
        "Cast", [writer.node("Gather", [missing, features], axis=1)], to=11 if kind is np.float64 else 1
    )
    give(writer, writer.node("Concat", [filled, shown], axis=1), operator)


def _power(scope: Any, operator: Any, container: Any) -> None:
    """A PowerTransformer, each branch kept from values it is not for: skl2onnx's own gives NaN below -1."""
    transformer = operator.raw_operator
    writer = Container(scope, container)
    table, kind = joined_inputs(operator, writer)
    exponents = np.asarray(transformer.lambdas_, dtype=np.float64)

    def row(values: Any) -> str:
        return writer.constant(np.asarray(values, dtype=kind).reshape(1, -1))

    def power(base: str, by: Array) -> str:
        """(base ** by - 1) / by, and log(base) where ``by`` is zero; ``base`` is above zero."""
        zero = np.abs(by) < np.spacing(1.0)
        raised = writer.node("Sub", [writer.node("Pow", [base, row(np.where(zero, 1, by))]), row([1])])
        given = writer.node("Div", [raised, row(np.where(zero, 1, by))])
        if not zero.any():
            return given
        return writer.node("Where", [writer.constant(zero[None]), writer.node("Log", [base]), given])

    if transformer.method == "box-cox":
        given = power(table, exponents)
    else:
        zero, one = row([0]), row([1])
        above = power(writer.node("Add", [writer.node("Max", [table, zero]), one]), exponents)
        lowered = writer.node("Add", [writer.node("Neg", [writer.node("Min", [table, zero])]), one])
        below = writer.node("Neg", [power(lowered, 2 - exponents)])
        given = writer.node("Where", [writer.node("Less", [table, zero]), below, above])
        # What max and min make of NaN differs; it stays what it was.
        given = writer.node("Where", [writer.node("IsNaN", [table]), table, given])
    if transformer.standardize:
        scaler = transformer._scaler
        given = writer.node("Div", [writer.node("Sub", [given, row(scaler.mean_)]), row(scaler.scale_)])
    give(writer, given, operator)


def of_length_one(writer: Container, table: str, norm: str, kind: type[Any]) -> str:
    """Return ``table`` with rows whose norm (l1 or l2) is one; a row of zeros, as of a text without a word, stays."""
    zero, one = writer.constant(np.array(0, kind)), writer.constant(np.array(1, kind))
    operator_name = {"l1": "ReduceL1", "l2": "ReduceL2"}[norm]
    if writer.container.target_opset < 18:
        length = writer.node(operator_name, [table], axes=[1], keepdims=1)
    else:
        length = writer.node(operator_name, [table, writer.constant(np.array([1], np.int64))], keepdims=1)
    return writer.node("Div", [table, writer.node("Where", [writer.node("Equal", [length, zero]), one, length])])


def _tfidf(scope: Any, operator: Any, container: Any) -> None:
    """Weights of words; skl2onnx takes log(1 + count) for a sublinear count, which is 1 + log(count)."""
    transformer = operator.raw_operator
    writer = Container(scope, container)
    table, kind = joined_inputs(operator, writer)
    zero, one = writer.constant(np.array(0, kind)), writer.constant(np.array(1, kind))
    if transformer.sublinear_tf:
        logged = writer.node("Add", [writer.node("Log", [writer.node("Max", [table, one])]), one])
        table = writer.node("Where", [writer.node("Greater", [table, zero]), logged, zero])
    if transformer.use_idf:
        table = writer.node("Mul", [table, writer.constant(np.ravel(transformer.idf_).astype(kind)[None])])
    if transformer.norm is not None:
        table = of_length_one(writer, table, transformer.norm, kind)
    give(writer, table, operator)
