"""Regressors of several targets that skl2onnx gives in one column, and some that it has not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from converters.sklearn_extra import give
from converters.sklearn_members import Writer, answered, columns, declare
from converters.sklearn_stacking import joined
from converters.sklearn_table import Table, kernel_of

_BENT = {"relu": "Relu", "tanh": "Tanh", "logistic": "Sigmoid", "exp": "Exp"}


def register() -> None:
    """Make skl2onnx use these converters; again and again does no harm."""
    from skl2onnx import update_registered_converter
    from sklearn.cross_decomposition import CCA, PLSCanonical
    from sklearn.dummy import DummyRegressor
    from sklearn.ensemble import BaggingRegressor, StackingRegressor
    from sklearn.kernel_ridge import KernelRidge
    from sklearn.multioutput import MultiOutputRegressor
    from sklearn.neural_network import MLPRegressor

    written: dict[type[Any], Callable[[Any, Any, Any], str]] = {
        MLPRegressor: _perceptron,
        BaggingRegressor: _bagging,
        MultiOutputRegressor: _several,
        StackingRegressor: _stacked,
        KernelRidge: _kernel_ridge,
        CCA: _least_squares,
        PLSCanonical: _least_squares,
        DummyRegressor: _dummy,
    }
    for cls, write in written.items():
        alias = f"Modelium{cls.__name__}"
        parse = declare(alias, ("variable",))
        update_registered_converter(cls, alias, _shape, _converter(write), parser=parse, overwrite=True)


def _shape(operator: Any) -> None:
    from skl2onnx.common.data_types import FloatTensorType

    operator.outputs[0].set_type(FloatTensorType([None, None]))


def _converter(write: Callable[[Any, Any, Any], str]) -> Callable[[Any, Any, Any], None]:
    def convert(scope: Any, operator: Any, container: Any) -> None:
        writer = Writer(scope, container)
        given = writer("Cast", write(scope, operator, container), to=1)
        give(writer.container, writer.table(given), operator)

    return convert


def _perceptron(scope: Any, operator: Any, container: Any) -> str:
    model, table = operator.raw_operator, Table(operator, Writer(scope, container).container)
    given, last = table.name, len(model.coefs_) - 1
    for number, (weights, shift) in enumerate(zip(model.coefs_, model.intercepts_, strict=True)):
        given = table("Add", table.product(given, weights), table.numbers(shift))
        bent = model.activation if number < last else model.out_activation_
        if bent != "identity":
            given = table(_BENT[bent], given)
    return given


def _bagging(scope: Any, operator: Any, container: Any) -> str:
    model, write = operator.raw_operator, Writer(scope, container)
    given = []
    for member, features in zip(model.estimators_, model.estimators_features_, strict=True):
        every = np.array_equal(features, np.arange(model.n_features_in_))
        inputs = list(operator.inputs) if every else columns(scope, container, operator.inputs, features)
        given.append(write.table(answered(scope, container, inputs, member)))
    return write("Mean", *given)


def _stacked(scope: Any, operator: Any, container: Any) -> str:
    model, write = operator.raw_operator, Writer(scope, container)
    members = [member for member in model.estimators_ if member != "drop"]
    given = [write.table(answered(scope, container, operator.inputs, member)) for member in members]
    return answered(scope, container, [joined(scope, container, operator, given)], model.final_estimator_)


def _several(scope: Any, operator: Any, container: Any) -> str:
    write = Writer(scope, container)
    members = operator.raw_operator.estimators_
    given = [write.upright(answered(scope, container, operator.inputs, member)) for member in members]
    return given[0] if len(given) == 1 else write("Concat", *given, axis=1)


def _kernel_ridge(scope: Any, operator: Any, container: Any) -> str:
    model, table = operator.raw_operator, Table(operator, Writer(scope, container).container)
    kernel = kernel_of(table, model.kernel, model.X_fit_, gamma=model.gamma, degree=model.degree, coef0=model.coef0)
    return table.product(kernel, np.asarray(model.dual_coef_).reshape(len(model.X_fit_), -1))


def _least_squares(scope: Any, operator: Any, container: Any) -> str:
    model, table = operator.raw_operator, Table(operator, Writer(scope, container).container)
    return table("Add", table.product(table.shifted(model._x_mean), model.coef_.T), table.numbers(model.intercept_))


def _dummy(scope: Any, operator: Any, container: Any) -> str:
    write = Writer(scope, container)
    rows = write("Gather", write("Shape", operator.inputs[0].full_name), write.places([0]))
    constant = np.atleast_2d(operator.raw_operator.constant_)
    return write("Expand", write.numbers(constant), write("Concat", rows, write.places([1]), axis=0))
