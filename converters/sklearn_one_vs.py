"""OneVsRestClassifier and OneVsOneClassifier: classifiers of two classes each, of any kind.

skl2onnx asks members for probabilities where scikit-learn asks for what they decide by, and takes class names for
numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from converters.boosting_sklearn import asks_scores
from converters.sklearn_extra import give
from converters.sklearn_members import OPTIONS, Writer, columns, decides, declare, give_label, said, shape
from converters.sklearn_steps import opened


def register() -> None:
    """Make skl2onnx use these converters; again and again does no harm."""
    from skl2onnx import update_registered_converter
    from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier

    for cls, types, convert in ((OneVsRestClassifier, _rest_shape, _rest), (OneVsOneClassifier, shape, _one)):
        alias = f"Modelium{cls.__name__}"
        update_registered_converter(cls, alias, types, convert, parser=declare(alias), options=OPTIONS, overwrite=True)


def _rest_shape(operator: Any) -> None:
    from skl2onnx.common.data_types import Int64TensorType

    shape(operator)
    if operator.raw_operator.multilabel_:
        operator.outputs[0].set_type(Int64TensorType([None, len(operator.raw_operator.classes_)]))


def _rest(scope: Any, operator: Any, container: Any) -> None:
    model, write = operator.raw_operator, Writer(scope, container)
    members = model.estimators_
    sure = [_confidence(scope, container, operator.inputs, write, member) for member in members]
    together = sure[0] if len(sure) == 1 else write("Concat", *sure, axis=1)
    over = write("Cast", write("Greater", together, write.numbers(_threshold(members[0]))), to=7)
    if model.multilabel_:
        give(write.container, over, operator)
    else:
        many = len(members) > 1
        best = write("ArgMax", together, axis=1, keepdims=0) if many else write("Reshape", over, write.places([-1]))
        give_label(write, operator, best)
    if asks_scores(container, model) or not hasattr(model, "predict_proba"):
        give(write.container, together, operator, 1)
        return
    shares = [_probability(scope, container, operator.inputs, write, member) for member in members]
    table = shares[0] if len(shares) == 1 else write("Concat", *shares, axis=1)
    if len(shares) == 1:
        table = write("Concat", write("Sub", write.numbers(1), table), table, axis=1)
    if not model.multilabel_:
        total = write("ReduceSum", table, write.places([1]), keepdims=1)
        table = write("Div", table, write("Where", write("Equal", total, write.numbers(0)), write.numbers(1), total))
    give(write.container, table, operator, 1)


def _confidence(scope: Any, container: Any, inputs: Any, write: Writer, member: Any) -> str:
    """Return what the member decides by, [rows, 1]: its decision function, or the second class's probability."""
    from sklearn.base import is_regressor

    if _is_constant(member):
        return _always(write, inputs, member)
    raw = decides(opened(member)) and not is_regressor(member)
    return write.last(write.table(said(scope, container, inputs, member, raw=raw).scores))


def _probability(scope: Any, container: Any, inputs: Any, write: Writer, member: Any) -> str:
    if _is_constant(member):
        return _always(write, inputs, member)
    return write.last(said(scope, container, inputs, member, raw=False).scores)


def _is_constant(member: Any) -> bool:
    """Whether there was nothing, or everything, of the member's class to learn from."""
    return hasattr(member, "y_") and not hasattr(member, "classes_")


def _always(write: Writer, inputs: Any, member: Any) -> str:
    rows = write("Gather", write("Shape", inputs[0].full_name), write.places([0]))
    return write("Expand", write.numbers([[float(member.y_[0])]]), write("Concat", rows, write.places([1]), axis=0))


def _threshold(member: Any) -> float:
    from sklearn.base import is_classifier

    return 0.0 if decides(opened(member)) and is_classifier(member) else 0.5


def _one(scope: Any, operator: Any, container: Any) -> None:
    model, write = operator.raw_operator, Writer(scope, container)
    classes, members = len(model.classes_), model.estimators_
    pairs = [(i, j) for i in range(classes) for j in range(i + 1, classes)]
    voted, sure = [], []
    for number, member in enumerate(members):
        inputs = operator.inputs
        if model.pairwise_indices_ is not None:
            inputs = columns(scope, container, inputs, model.pairwise_indices_[number])
        told = said(scope, container, inputs, member, raw=decides(opened(member)))
        sure.append(write.last(write.table(told.scores)))
        voted.append(write("Cast", write.upright(told.label), to=1))
    first, second = np.zeros((len(pairs), classes)), np.zeros((len(pairs), classes))
    for number, (i, j) in enumerate(pairs):
        first[number, i] = second[number, j] = 1
    votes = _side_by_side(write, voted)
    against = write("Sub", write.numbers(1), votes)
    counted = write(
        "Add", write("MatMul", against, write.numbers(first)), write("MatMul", votes, write.numbers(second))
    )
    leaning = write("MatMul", _side_by_side(write, sure), write.numbers(second - first))
    bent = write("Div", leaning, write("Mul", write("Add", write("Abs", leaning), write.numbers(1)), write.numbers(3)))
    scores = write("Add", counted, bent)
    if classes == 2:
        scores = write.last(scores)
        over = write("Cast", write("Greater", scores, write.numbers(_threshold(members[0]))), to=7)
        best = write("Reshape", over, write.places([-1]))
    else:
        best = write("ArgMax", scores, axis=1, keepdims=0)
    give_label(write, operator, best)
    give(write.container, scores, operator, 1)


def _side_by_side(write: Writer, parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else write("Concat", *parts, axis=1)
