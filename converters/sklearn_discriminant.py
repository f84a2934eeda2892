"""LinearDiscriminantAnalysis: of two classes skl2onnx gives the probability of twice the decision."""

from __future__ import annotations

from typing import Any

from converters.boosting_sklearn import asks_scores
from converters.sklearn_extra import give, joined_inputs
from converters.sklearn_members import OPTIONS, Writer, declare, give_label, shape


def register() -> None:
    """Make skl2onnx use this; again and again does no harm."""
    from skl2onnx import update_registered_converter
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    alias = "ModeliumLinearDiscriminantAnalysis"
    update_registered_converter(
        LinearDiscriminantAnalysis, alias, shape, _convert, parser=declare(alias), options=OPTIONS, overwrite=True
    )


def _convert(scope: Any, operator: Any, container: Any) -> None:
    model, write = operator.raw_operator, Writer(scope, container)
    table, kind = joined_inputs(operator, write.container)
    weights, shift = (write.container.constant(array.astype(kind)) for array in (model.coef_.T, model.intercept_))
    decided = write("Cast", write("Add", write("MatMul", table, weights), shift), to=1)
    two = len(model.classes_) == 2
    yes = write("Sigmoid", decided) if two else write("Softmax", decided, axis=1)
    given = write("Concat", write("Sub", write.numbers(1), yes), yes, axis=1) if two else yes
    over = write("Cast", write("Greater", decided, write.numbers(0)), to=7)
    best = write("Reshape", over, write.places([-1])) if two else write("ArgMax", decided, axis=1, keepdims=0)
    give_label(write, operator, best)
    give(write.container, decided if asks_scores(container, model) else given, operator, 1)
