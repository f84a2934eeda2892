"""TransformedTargetRegressor: a regressor of any kind, whose answers are turned back into what was asked for."""

from __future__ import annotations

from typing import Any

import numpy as np

from converters import sklearn_extra
from converters.arrays import Array
from converters.boosting_sklearn import Container
from converters.sklearn_members import Writer, answered, declare

_ALIAS = "ModeliumTransformedTargetRegressor"


def register() -> None:
    """Make skl2onnx use this converter; again and again does no harm."""
    from skl2onnx import update_registered_converter
    from sklearn.compose import TransformedTargetRegressor

    parse = declare(_ALIAS, ("variable",))
    update_registered_converter(TransformedTargetRegressor, _ALIAS, _shape, _convert, parser=parse, overwrite=True)


def _shape(operator: Any) -> None:
    from skl2onnx.common.data_types import FloatTensorType

    operator.outputs[0].set_type(FloatTensorType([None, None]))


def _convert(scope: Any, operator: Any, container: Any) -> None:
    model, write = operator.raw_operator, Writer(scope, container)
    answers = write.table(answered(scope, container, operator.inputs, model.regressor_))
    transformer = model.transformer_
    steps = [step for _, step in transformer.steps] if hasattr(transformer, "steps") else [transformer]
    for step in reversed(steps):
        answers = _turned_back(write.container, answers, np.float32, step)
    sklearn_extra.give(write.container, answers, operator)


def _turned_back(writer: Container, table: str, kind: type[Any], step: Any) -> str:
    """Return what the inverse of one fitted transformer makes of ``table``, (rows, targets)."""

    def row(values: Any) -> str:
        return writer.constant(np.asarray(values, dtype=kind).reshape(1, -1))

    def scaled(given: str, scale: Any, center: Any) -> str:
        given = given if scale is None else writer.node("Mul", [given, row(scale)])
        return given if center is None else writer.node("Add", [given, row(center)])

    match type(step).__name__:
        case "FunctionTransformer" if not step.inv_kw_args:
            return table if step.inverse_func is None else sklearn_extra.applied(writer, table, kind, step.inverse_func)
        case "StandardScaler":
            return scaled(table, step.scale_ if step.with_std else None, step.mean_ if step.with_mean else None)
        case "RobustScaler":
            return scaled(
                table, step.scale_ if step.with_scaling else None, step.center_ if step.with_centering else None
            )
        case "MaxAbsScaler":
            return scaled(table, step.scale_, None)
        case "MinMaxScaler":
            return scaled(table, 1 / step.scale_, -step.min_ / step.scale_)
        case "PowerTransformer":
            if step.standardize:
                table = scaled(table, step._scaler.scale_, step._scaler.mean_)
            return _power_turned_back(writer, table, kind, np.asarray(step.lambdas_, np.float64), step.method)
    raise RuntimeError(
        f"TransformedTargetRegressor turns its answers back with {type(step).__name__}, which is not converted."
    )


def _power_turned_back(writer: Container, table: str, kind: type[Any], exponents: Array, method: str) -> str:
    """The inverse of Box and Cox, or of Yeo and Johnson, whose two branches are each kept from the other's values."""

    def row(values: Any) -> str:
        return writer.constant(np.asarray(values, dtype=kind).reshape(1, -1))

    def root(given: str, by: Array) -> str:
        """(given * by + 1) ** (1 / by), and exp(given) where ``by`` is zero."""
        zero = np.abs(by) < np.spacing(1.0)
        safe = np.where(zero, 1, by)
        base = writer.node("Add", [writer.node("Mul", [given, row(safe)]), row([1])])
        found = writer.node("Pow", [base, row(1 / safe)])
        if not zero.any():
            return found
        return writer.node("Where", [writer.constant(zero[None]), writer.node("Exp", [given]), found])

    if method == "box-cox":
        return root(table, exponents)
    zero, one = row([0]), row([1])
    above = writer.node("Sub", [root(writer.node("Max", [table, zero]), exponents), one])
    lowered = writer.node("Neg", [writer.node("Min", [table, zero])])
    below = writer.node("Sub", [one, root(lowered, 2 - exponents)])
    return writer.node("Where", [writer.node("Less", [table, zero]), below, above])
