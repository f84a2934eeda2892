"""Estimators that learn from what others say, and those of several targets: members of any kind, given all inputs.

skl2onnx gives members the first input alone, takes one column of two classes only where every member gives
probabilities, and hands a pipeline options that the classifier at its end does not know.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from converters.boosting_sklearn import Container, asks_scores
from converters.sklearn_extra import give
from converters.sklearn_members import OPTIONS, Writer, declare, give_label, said, shape

_SEVERAL = "ModeliumMultiOutputClassifier"


def register() -> None:
    """Make skl2onnx use these converters; again and again does no harm."""
    from skl2onnx import update_registered_converter
    from skl2onnx.common._registration import register_converter
    from sklearn.ensemble import StackingClassifier
    from sklearn.multioutput import MultiOutputClassifier

    register_converter("SklearnPipeline", _pipeline, overwrite=True, options=OPTIONS)
    alias = "ModeliumStackingClassifier"
    update_registered_converter(
        StackingClassifier, alias, shape, _stacked_classes, parser=declare(alias), options=OPTIONS, overwrite=True
    )
    update_registered_converter(
        MultiOutputClassifier,
        _SEVERAL,
        _several_shape,
        _several,
        parser=_several_parse,
        options=OPTIONS,
        overwrite=True,
    )


def _pipeline(scope: Any, operator: Any, container: Any) -> None:
    """A pipeline inside another model."""
    write_steps(scope, operator, container, [step for _, step in operator.raw_operator.steps])


def write_steps(scope: Any, operator: Any, container: Any, steps: Sequence[Any]) -> None:
    """Write estimators of which each takes what the one before gives, in the place of ``operator``."""
    from skl2onnx._parse import _parse_sklearn
    from skl2onnx._supported_operators import sklearn_operator_name_map
    from skl2onnx.common._registration import get_converter
    from skl2onnx.common.data_types import guess_proto_type
    from sklearn.base import is_classifier
    from sklearn.pipeline import Pipeline

    given = operator.inputs
    for step in steps:
        alias = sklearn_operator_name_map.get(type(step))
        known = get_converter(alias).get_allowed_options() or {} if alias is not None else {}
        if isinstance(step, Pipeline) or (is_classifier(step) and "zipmap" in known):
            for options in (scope, container):
                options.add_options(id(step), options={"zipmap": False})
        given = _parse_sklearn(scope, step, given, custom_parsers=None)
    for number, (inner, outer) in enumerate(zip(given, operator.outputs, strict=True)):
        same = isinstance(outer.type, type(inner.type))
        writer = Container(scope, container)
        name = inner.full_name if same else writer.node("Cast", [inner.full_name], to=guess_proto_type(outer.type))
        give(writer, name, operator, number)


def _stacked_classes(scope: Any, operator: Any, container: Any) -> None:
    model, write = operator.raw_operator, Writer(scope, container)
    members = [member for member in model.estimators_ if member != "drop"]
    columns = []
    for member, method in zip(members, model.stack_method_, strict=True):
        if method == "predict":
            raise RuntimeError("StackingClassifier takes a member's labels for scores.")
        told = said(scope, container, operator.inputs, member, raw=method == "decision_function")
        columns.append(write.last(write.table(told.scores)) if len(model.classes_) == 2 else told.scores)
    final = model.final_estimator_
    raw = asks_scores(container, model) or not hasattr(final, "predict_proba")
    told = said(scope, container, [joined(scope, container, operator, columns)], final, raw=raw)
    # The last one was fitted on the places of the classes.
    place = write("Reshape", write("Cast", told.label, to=7), write.places([-1]))
    give_label(write, operator, place)
    give(write.container, told.scores, operator, 1)


def joined(scope: Any, container: Any, operator: Any, columns: list[str]) -> Any:
    """Return the variable that holds ``columns`` side by side, and behind them the rows where those are passed on."""
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType

    model, write = operator.raw_operator, Writer(scope, container)
    if model.passthrough:
        if any(isinstance(variable.type, StringTensorType) for variable in operator.inputs):
            raise RuntimeError(f"{type(model).__name__} passes strings through.")
        columns = [*columns, *(write("Cast", variable.full_name, to=1) for variable in operator.inputs)]
    side = scope.declare_local_variable("said", FloatTensorType([None, int(model.final_estimator_.n_features_in_)]))
    container.add_node(
        "Concat", columns, [side.full_name], axis=1, name=scope.get_unique_operator_name("Concat"),
        op_version=container.target_opset,
    )  # fmt: skip
    return side


def _several_parse(scope: Any, model: Any, inputs: Any, custom_parsers: Any = None) -> Any:
    names = ("label", *(f"probabilities_{number}" for number in range(len(model.estimators_))))
    return declare(_SEVERAL, names)(scope, model, inputs)


def _several_shape(operator: Any) -> None:
    from skl2onnx.common.data_types import FloatTensorType, Int64TensorType, StringTensorType

    members = operator.raw_operator.estimators_
    strings = np.asarray(members[0].classes_).dtype.kind in "OUS"
    operator.outputs[0].set_type((StringTensorType if strings else Int64TensorType)([None, len(members)]))
    for variable, member in zip(operator.outputs[1:], members, strict=True):
        variable.set_type(FloatTensorType([None, len(member.classes_)]))


def _several(scope: Any, operator: Any, container: Any) -> None:
    """A MultiOutputClassifier."""
    write, labels = Writer(scope, container), []
    for number, member in enumerate(operator.raw_operator.estimators_):
        told = said(scope, container, operator.inputs, member, raw=False)
        labels.append(write.upright(told.label))
        give(write.container, told.scores, operator, number + 1)
    give(write.container, labels[0] if len(labels) == 1 else write("Concat", *labels, axis=1), operator)
