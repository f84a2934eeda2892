"""StackingClassifier of two classes whose members give scores of several kinds: one column of each is taken.

skl2onnx takes one column only where every member gives probabilities, and two of each otherwise.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from converters.boosting_sklearn import Container


def register() -> None:
    """Make skl2onnx use this for what members say; again and again does no harm."""
    from skl2onnx.operator_converters import stacking

    stacking._transform = _transform


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
