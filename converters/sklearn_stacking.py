"""StackingClassifier of two classes whose members give scores of several kinds: one column of each is taken.

skl2onnx takes one column only where every member gives probabilities, and two of each otherwise. A member that is a
pipeline it hands options that the classifier at its end does not know.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from converters.boosting_sklearn import Container
from converters.sklearn_extra import give


def register() -> None:
    """Make skl2onnx use this for what members say; again and again does no harm."""
    from skl2onnx.common._registration import register_converter
    from skl2onnx.operator_converters import stacking

    stacking._transform = _transform
    options = {"zipmap": [True, False, "columns"], "raw_scores": [True, False], "nocl": [True, False],
               "output_class_labels": [False, True]}  # fmt: skip
    register_converter("SklearnPipeline", _pipeline, overwrite=True, options=options)


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


def _transform(scope: Any, operator: Any, container: Any, model: Any) -> str:
    """Return what the members say of each row, side by side, and the row itself where the model passes it through."""
    from skl2onnx.operator_converters import stacking

    writer = Container(scope, container)
    members = [member for member in model.estimators_ if member != "drop"]
    said = []
    for member, method in zip(members, model.stack_method_, strict=True):
        if method == "predict":
            raise RuntimeError("StackingClassifier takes a member's labels for scores.")
        raw = method == "decision_function"
        last = member.steps[-1][1] if hasattr(member, "steps") else member
        if raw and last is not member:
            container.add_options(id(last), {"raw_scores": True})
        scores = stacking._fetch_scores(scope, container, member, operator.inputs[0], raw_scores=raw)
        if len(model.classes_) == 2:
            scores = writer.node("Gather", [scores, writer.constant(np.array([-1], np.int64))], axis=1)
        said.append(scores)
    stacking._add_passthrough_connection(operator, said)
    return writer.node("Concat", said, axis=1)
