"""What a classifier inside another says of each row: its label, and its probabilities or what it decides by."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from converters.boosting_sklearn import Container
from converters.sklearn_extra import class_labels, give
from converters.sklearn_steps import opened

OPTIONS = {"zipmap": [True, False, "columns"], "raw_scores": [True, False], "nocl": [True, False],
           "output_class_labels": [False, True]}  # fmt: skip


@dataclass(frozen=True)
class Said:
    """Names of tensors: labels, [rows] or [rows, 1], and scores, float32 [rows, classes]; of two classes the last."""

    label: str
    scores: str


def decides(estimator: Any) -> bool:
    """Whether it has a decision function, which scikit-learn asks before probabilities."""
    return hasattr(estimator, "decision_function")


def said(scope: Any, container: Any, inputs: Sequence[Any], estimator: Any, *, raw: bool) -> Said:
    """Declare the classifier with all that it is made of; ``raw`` asks for what it decides by.

    Raises RuntimeError where that has no form in ONNX.
    """
    from skl2onnx._parse import _parse_sklearn
    from skl2onnx._supported_operators import sklearn_operator_name_map
    from skl2onnx.common._registration import get_converter

    from converters.sklearn_onnx import use_equivalents

    parts = _apart(opened(estimator))
    inner, last = parts[0], parts[-1]
    use_equivalents(inner)
    alias = sklearn_operator_name_map.get(type(last))
    known = get_converter(alias).get_allowed_options() or {} if alias is not None else {}
    if raw and "raw_scores" not in known:
        raise RuntimeError(f"The decision function of {type(last).__name__} has no form in ONNX.")
    for part in parts:
        wanted = {"zipmap": False, "raw_scores": raw} if part is last else {"zipmap": False}
        for options in (scope, container):
            options.add_options(id(part), {name: value for name, value in wanted.items() if name in known})
    if raw and getattr(last, "probability", False):
        # skl2onnx would give an SVC's probabilities still.
        last.probability, last._probA, last._probB = False, np.empty(0), np.empty(0)
    given = _parse_sklearn(scope, inner, list(inputs))
    names = [variable.full_name for variable in given]
    return Said(names[0], Container(scope, container).node("Cast", [names[-1]], to=1))


def answered(scope: Any, container: Any, inputs: Sequence[Any], estimator: Any) -> str:
    """Declare a regressor with all that it is made of; return what it predicts, float32."""
    from skl2onnx._parse import _parse_sklearn

    [variable] = _parse_sklearn(scope, opened(estimator), list(inputs))
    return Container(scope, container).node("Cast", [variable.full_name], to=1)


def _apart(estimator: Any) -> list[Any]:
    """Return a copy of the estimator, and of the last step in it and so on: skl2onnx keeps its options by object."""
    own = copy.copy(estimator)
    if not hasattr(own, "steps"):
        return [own]
    inside = _apart(opened(own.steps[-1][1]))
    own.steps = [*own.steps[:-1], (own.steps[-1][0], inside[0])]
    return [own, *inside]


def columns(scope: Any, container: Any, inputs: Sequence[Any], places: Any) -> list[Any]:
    """Return the columns at ``places`` of the table that ``inputs`` are, as what another operator takes."""
    writer = Container(scope, container)
    table, kind = inputs[0].full_name, type(inputs[0].type)
    if len(inputs) > 1:
        table = writer.node("Concat", [variable.full_name for variable in inputs], axis=1)
    picked = scope.declare_local_variable("columns", kind([None, len(places)]))
    container.add_node(
        "Gather", [table, writer.constant(np.asarray(places, dtype=np.int64))], [picked.full_name], axis=1,
        name=scope.get_unique_operator_name("Gather"), op_version=container.target_opset,
    )  # fmt: skip
    return [picked]


class Writer:
    """Nodes whose numbers are float32."""

    def __init__(self, scope: Any, container: Any) -> None:
        """Write into ``container`` with names of ``scope``."""
        self.container = Container(scope, container)

    def __call__(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node and return the name of its one output."""
        return self.container.node(operator, inputs, **attributes)

    def numbers(self, values: Any) -> str:
        """Return a constant of numbers."""
        return self.container.constant(np.asarray(values, dtype=np.float32))

    def places(self, values: Any) -> str:
        """Return a constant of positions, int64."""
        return self.container.constant(np.asarray(values, dtype=np.int64))

    def last(self, scores: str) -> str:
        """Return the last column, [rows, 1]."""
        return self("Gather", scores, self.places([-1]), axis=1)

    def column(self, table: str, place: int) -> str:
        """Return one column, [rows, 1]."""
        return self("Gather", table, self.places([place]), axis=1)

    def table(self, scores: str) -> str:
        """Return scores as [rows, classes], also where there is one number a row."""
        rows = self("Gather", self("Shape", scores), self.places([0]))
        return self("Reshape", scores, self("Concat", rows, self.places([-1]), axis=0))

    def upright(self, values: str) -> str:
        """Return one value a row as a column, [rows, 1]."""
        return self("Reshape", values, self.places([-1, 1]))


def declare(alias: str, names: Sequence[str] = ("label", "probabilities")) -> Any:
    """Return a parser that declares one operator with outputs ``names``; what is inside is declared in writing it."""

    def parse(scope: Any, model: Any, inputs: Any, custom_parsers: Any = None) -> Any:
        from skl2onnx.common.data_types import FloatTensorType

        operator = scope.declare_local_operator(alias, model)
        operator.inputs.extend(inputs)
        for name in names:
            operator.outputs.append(scope.declare_local_variable(name, FloatTensorType()))
        return operator.outputs

    return parse


def give_label(write: Writer, operator: Any, place: str) -> None:
    """Make the class at ``place``, [rows], the operator's label."""
    labels = write.container.constant(class_labels(operator.raw_operator.classes_))
    give(write.container, write("Gather", labels, place, axis=0), operator)


def shape(operator: Any) -> None:
    """Tell the types of a label and of scores of every class."""
    from skl2onnx.common.data_types import FloatTensorType, Int64TensorType, StringTensorType

    classes = np.asarray(operator.raw_operator.classes_)
    operator.outputs[0].set_type((StringTensorType if classes.dtype.kind in "OUS" else Int64TensorType)([None]))
    operator.outputs[1].set_type(FloatTensorType([None, len(classes)]))
