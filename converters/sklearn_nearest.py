"""KNeighborsClassifier and KNeighborsRegressor that weigh their neighbours by distance.

skl2onnx takes the distances with the wrong sign, so that all neighbours weigh the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from converters.arrays import Array
from converters.boosting_sklearn import Container
from converters.sklearn_extra import class_labels, give
from converters.sklearn_radius import columns, distances_to_rows, weighed

_FLOAT = 1
_theirs: dict[str, Callable[..., None]] = {}
"""skl2onnx's own converters by class, right where all neighbours weigh the same."""


def register() -> None:
    """Make skl2onnx use these converters; again and again does no harm."""
    from skl2onnx import update_registered_converter
    from skl2onnx._supported_operators import sklearn_operator_name_map
    from skl2onnx.common._registration import get_converter, get_shape_calculator
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

    for cls, convert in ((KNeighborsClassifier, _classifier), (KNeighborsRegressor, _regressor)):
        if cls.__name__ in _theirs:
            continue
        alias = sklearn_operator_name_map[cls]
        registered = get_converter(alias)
        _theirs[cls.__name__] = registered
        options = {"zipmap": [True, False, "columns"], "nocl": [True, False], "output_class_labels": [False, True],
                   "raw_scores": [True, False], "optim": [None, "cdist"]}  # fmt: skip
        allowed = registered.get_allowed_options() or {}
        update_registered_converter(
            cls, alias, get_shape_calculator(alias), convert, overwrite=True,
            options={name: values for name, values in options.items() if name in allowed},
        )  # fmt: skip


def _dense(model: Any) -> Any:
    """Return the model with its rows in a table: words before it gave a sparse one."""
    if hasattr(model._fit_X, "toarray"):
        model._fit_X = model._fit_X.toarray()
    return model


def _classifier(scope: Any, operator: Any, container: Any) -> None:
    model = _dense(operator.raw_operator)
    if model.weights == "uniform":
        _theirs[type(model).__name__](scope, operator, container)
        return
    if model.outputs_2d_:
        raise RuntimeError("KNeighborsClassifier weighs its neighbours for several targets.")
    writer = Container(scope, container)
    indicator = (np.ravel(model._y)[:, None] == np.arange(len(model.classes_))[None]).astype(np.float64)
    shares = _mean(writer, operator, indicator)
    give(writer, writer.node("Cast", [shares], to=_FLOAT), operator, 1)
    best = writer.node("ArgMax", [shares], axis=1, keepdims=0)
    give(writer, writer.node("Gather", [writer.constant(class_labels(model.classes_)), best], axis=0), operator)


def _regressor(scope: Any, operator: Any, container: Any) -> None:
    model = _dense(operator.raw_operator)
    if model.weights == "uniform":
        _theirs[type(model).__name__](scope, operator, container)
        return
    writer = Container(scope, container)
    mean = _mean(writer, operator, columns(model._y).astype(np.float64))
    give(writer, writer.node("Cast", [mean], to=_FLOAT), operator)


def _mean(writer: Container, operator: Any, values: Array) -> str:
    """Return the mean of the nearest rows' ``values``, (training rows, columns), each weighed by 1 / distance."""
    model = operator.raw_operator
    if model.weights != "distance":
        raise RuntimeError(f"{type(model).__name__} weighs its neighbours by a function of its own.")
    squared = model.effective_metric_ == "euclidean"
    distances = distances_to_rows(writer, operator, "sqeuclidean" if squared else model.effective_metric_)
    near, places = (writer.scope.get_unique_variable_name(name) for name in ("near", "places"))
    writer.container.add_node(
        "TopK", [distances, writer.constant(np.array([model.n_neighbors], np.int64))], [near, places], axis=1,
        largest=0, sorted=1, name=writer.scope.get_unique_operator_name("TopK"),
        op_version=writer.container.target_opset,
    )  # fmt: skip
    near = writer.node("Sqrt", [near]) if squared else near
    axis = writer.constant(np.array([1], np.int64))
    weights = weighed(writer, near, writer.constant(np.array(1.0)))
    total = writer.node("ReduceSum", [weights, axis], keepdims=1)
    theirs = writer.node("Gather", [writer.constant(values), places], axis=0)
    shares = writer.node("Mul", [theirs, writer.node("Unsqueeze", [weights, writer.constant(np.array([2], np.int64))])])
    return writer.node("Div", [writer.node("ReduceSum", [shares, axis], keepdims=0), total])
