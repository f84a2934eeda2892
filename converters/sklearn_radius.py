"""RadiusNeighborsClassifier and RadiusNeighborsRegressor, with their weights and what they say of outliers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from converters.arrays import Array
from converters.boosting_sklearn import Container
from converters.sklearn_extra import class_labels, give

_DOUBLE, _FLOAT, _INT64 = 11, 1, 7


def notes(steps: Iterable[Any]) -> list[str]:
    """Return what a person should know of those among ``steps`` that refuse outliers."""
    if not any(getattr(step, "outlier_label_", 0) is None for step in steps):
        return []
    return [
        "A row without neighbours within the radius is refused, as scikit-learn does, and with it the batch it is in; "
        "fitted with outlier_label, the classifier has an answer for it."
    ]


def register() -> None:
    """Make skl2onnx use these converters; again and again does no harm."""
    from skl2onnx import update_registered_converter
    from sklearn.neighbors import RadiusNeighborsClassifier, RadiusNeighborsRegressor

    for cls, convert in ((RadiusNeighborsClassifier, _classifier), (RadiusNeighborsRegressor, _regressor)):
        options = {"zipmap": [True, False, "columns"], "nocl": [True, False], "output_class_labels": [False, True]}
        update_registered_converter(
            cls, f"Modelium{cls.__name__}", _shape, convert, parser=_parse, overwrite=True,
            options=options if "Classifier" in cls.__name__ else {},
        )  # fmt: skip


def _parse(scope: Any, model: Any, inputs: Any, custom_parsers: Any = None) -> Any:
    from skl2onnx.common.data_types import FloatTensorType

    operator = scope.declare_local_operator(f"Modelium{type(model).__name__}", model)
    operator.inputs.extend(inputs)
    names = ["variable"]
    if hasattr(model, "classes_"):
        many = [f"probabilities_{number}" for number in range(len(model.classes_))]
        names = ["label", *(many if model.outputs_2d_ else ["probabilities"])]
    for name in names:
        operator.outputs.append(scope.declare_local_variable(name, FloatTensorType()))
    return operator.outputs


def _shape(operator: Any) -> None:
    from skl2onnx.common.data_types import FloatTensorType, Int64TensorType, StringTensorType

    model = operator.raw_operator
    if not hasattr(model, "classes_"):
        operator.outputs[0].set_type(FloatTensorType([None, columns(model._y).shape[1]]))
        return
    targets = _targets(model)
    strings = np.asarray(targets[0]).dtype.kind in "OUS"
    shape = [None, len(targets)] if model.outputs_2d_ else [None]
    operator.outputs[0].set_type((StringTensorType if strings else Int64TensorType)(shape))
    for variable, classes in zip(operator.outputs[1:], targets, strict=True):
        variable.set_type(FloatTensorType([None, len(classes)]))


def _classifier(scope: Any, operator: Any, container: Any) -> None:
    """Votes of the rows within the radius; for a row without any, the outlier's label."""
    model = operator.raw_operator
    writer = Container(scope, container)
    votes, crowd = _votes(writer, operator)
    zero, one = writer.constant(np.zeros((1, 1))), writer.constant(np.ones((1, 1)))
    alone = writer.node("Equal", [crowd, zero])
    outliers = model.outlier_label_
    if outliers is None:
        votes = writer.node("Add", [votes, _refusal(writer, alone, zero)])
    labels = []
    for target, classes in enumerate(_targets(model)):
        indicator = (columns(model._y)[:, target : target + 1] == np.arange(len(classes))[None]).astype(np.float64)
        counts = writer.node("MatMul", [votes, writer.constant(indicator)])
        if outliers is not None:
            instead = (np.asarray(classes) == outliers[target]).astype(np.float64)[None]
            counts = writer.node("Where", [alone, writer.constant(instead), counts])
        total = writer.node("ReduceSum", [counts, writer.constant(np.array([1], np.int64))], keepdims=1)
        total = writer.node("Where", [writer.node("Equal", [total, zero]), one, total])
        shares = writer.node("Div", [counts, total])
        give(writer, writer.node("Cast", [shares], to=_FLOAT), operator, 1 + target)
        best = writer.node("ArgMax", [shares], axis=1, keepdims=1)
        known = class_labels(classes)
        label = writer.node("Gather", [writer.constant(known), best], axis=0)
        if outliers is not None:
            # The label may be none of the classes; then every probability is zero.
            value = writer.constant(np.array([[outliers[target]]]).astype(known.dtype))
            label = writer.node("Where", [alone, value, label])
        labels.append(label)
    label = labels[0] if len(labels) == 1 else writer.node("Concat", labels, axis=1)
    if not model.outputs_2d_:
        label = writer.node("Reshape", [label, writer.constant(np.array([-1], np.int64))])
    give(writer, label, operator)


def _refusal(writer: Container, alone: str, zero: str) -> str:
    """Return a zero that cannot be computed when a row has no neighbours: scikit-learn refuses it, and so must this."""
    place = writer.node("ReduceMax", [writer.node("Cast", [alone], to=_INT64)], keepdims=0)
    output: str = writer.scope.get_unique_variable_name("refusal")
    # 1 is no place in a table of one row. What onnxruntime says then has the node's name in it.
    writer.container.add_node(
        "Gather", [zero, place], [output], axis=0, name="a row has no neighbours within the radius",
        op_version=writer.container.target_opset,
    )  # fmt: skip
    return output


def _regressor(scope: Any, operator: Any, container: Any) -> None:
    """The mean of the rows within the radius; NaN for a row without any, as 0 / 0 is."""
    model = operator.raw_operator
    writer = Container(scope, container)
    if model._y.dtype.kind != "f":
        # What it answers for an outlier is NaN made into a whole number, which is another one on another CPU.
        raise RuntimeError("RadiusNeighborsRegressor is converted where it was fitted on floats only.")
    votes, _ = _votes(writer, operator)
    total = writer.node("ReduceSum", [votes, writer.constant(np.array([1], np.int64))], keepdims=1)
    summed = writer.node("MatMul", [votes, writer.constant(columns(model._y).astype(np.float64))])
    give(writer, writer.node("Cast", [writer.node("Div", [summed, total])], to=_FLOAT), operator)


def _votes(writer: Container, operator: Any) -> tuple[str, str]:
    """Return the weight of each training row for each row, and how many are near it, (rows, 1); both float64.

    In float64 as in scikit-learn: on a grid of rounded data many distances are exactly the radius.
    """
    model = operator.raw_operator
    squared = model.effective_metric_ == "euclidean"
    distances = distances_to_rows(writer, operator, "sqeuclidean" if squared else model.effective_metric_)
    # scikit-learn's trees compare squares, too.
    limit = float(model.radius) ** 2 if squared else float(model.radius)
    near = writer.node("Not", [writer.node("Greater", [distances, writer.constant(np.array(limit))])])
    inside = writer.node("Cast", [near], to=_DOUBLE)
    axes = writer.constant(np.array([1], np.int64))
    crowd = writer.node("ReduceSum", [inside, axes], keepdims=1)
    if model.weights == "uniform":
        return inside, crowd
    if model.weights != "distance":
        raise RuntimeError(f"{type(model).__name__} weighs its neighbours by a function of its own.")
    return weighed(writer, writer.node("Sqrt", [distances]) if squared else distances, inside), crowd


def weighed(writer: Container, distances: str, counted: str) -> str:
    """Return 1 / distance of the rows that are ``counted``, 1 or 0; a row that lies on others is theirs alone."""
    zero, one = writer.constant(np.array(0.0)), writer.constant(np.array(1.0))
    on = writer.node("Equal", [distances, zero])
    exact = writer.node("Cast", [on], to=_DOUBLE)
    far = writer.node("Div", [counted, writer.node("Where", [on, one, distances])])
    met = writer.node("ReduceSum", [exact, writer.constant(np.array([1], np.int64))], keepdims=1)
    return writer.node("Where", [writer.node("Greater", [met, zero]), exact, far])


def distances_to_rows(writer: Container, operator: Any, metric: str) -> str:
    """Return the distances of each row to each training row in float64. Raises RuntimeError where ONNX has no way."""
    from skl2onnx.algebra.complex_functions import onnx_cdist
    from skl2onnx.algebra.onnx_ops import OnnxCast

    model = operator.raw_operator
    rows = np.asarray(model._fit_X)
    if rows.dtype.kind not in "fiu" or len(operator.inputs) != 1:
        raise RuntimeError(f"{type(model).__name__} was fitted on another thing than one table of numbers.")
    version = writer.container.target_opset
    more: dict[str, float] = {}
    if metric == "minkowski":
        more = {"p": float(model.effective_metric_params_.get("p", model.p))}
        if model.effective_metric_params_.get("w") is not None:
            raise RuntimeError(f"{type(model).__name__} weighs its features.")
    wide = OnnxCast(operator.inputs[0], to=_DOUBLE, op_version=version)
    output = writer.scope.get_unique_variable_name("distances")
    cdist = onnx_cdist(
        wide, rows.astype(np.float64), metric=metric, dtype=np.float64, op_version=version, dim_in=rows.shape[1],
        dim_out=rows.shape[0], output_names=[output], **more,
    )  # fmt: skip
    cdist.add_to(writer.scope, writer.container)
    return str(output)


def columns(targets: Any) -> Array:
    """Return targets as (rows, targets)."""
    array = np.asarray(targets)
    return array.reshape(-1, 1) if array.ndim == 1 else array


def _targets(model: Any) -> list[Any]:
    return list(model.classes_) if model.outputs_2d_ else [model.classes_]
