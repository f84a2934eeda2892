"""ClassifierChain and RegressorChain: each model is given the table and what the models before it said."""

from __future__ import annotations

from typing import Any

import numpy as np

from converters.sklearn_extra import give, joined_inputs
from converters.sklearn_members import OPTIONS, Writer, answered, declare, said

_FLOAT, _INT64 = 1, 7


def register() -> None:
    """Make skl2onnx use these converters; again and again does no harm."""
    from skl2onnx import update_registered_converter
    from sklearn.multioutput import ClassifierChain, RegressorChain

    for cls, names, options in (
        (ClassifierChain, ("label", "probabilities"), OPTIONS),
        (RegressorChain, ("variable",), {}),
    ):
        alias = f"Modelium{cls.__name__}"
        update_registered_converter(
            cls, alias, _shape, _convert, parser=declare(alias, names), options=options, overwrite=True
        )


def _shape(operator: Any) -> None:
    from skl2onnx.common.data_types import FloatTensorType, Int64TensorType

    shape = [None, len(operator.raw_operator.estimators_)]
    classifies = len(operator.outputs) == 2
    operator.outputs[0].set_type((Int64TensorType if classifies else FloatTensorType)(shape))
    for variable in operator.outputs[1:]:
        variable.set_type(FloatTensorType(shape))


def _convert(scope: Any, operator: Any, container: Any) -> None:
    model, write = operator.raw_operator, Writer(scope, container)
    classifies = len(operator.outputs) == 2
    chances = classifies and hasattr(model, "predict_proba")
    passed = getattr(model, "chain_method_", "predict")
    if passed not in ("predict", *(("predict_proba", "predict_log_proba") if chances else ("decision_function",))):
        raise RuntimeError(f"{type(model).__name__} passes {passed} on beside the answers that it gives itself.")
    table = write("Cast", joined_inputs(operator, write.container)[0], to=_FLOAT)
    answers: list[tuple[str, ...]] = []
    for estimator in model.estimators_:
        rows = _variable(scope, container, table, model.n_features_in_ + len(answers))
        if classifies:
            told = said(scope, container, [rows], estimator, raw=not chances)
            label = write("Cast", write.upright(told.label), to=_FLOAT)
            answers.append((label, write.last(write.table(told.scores))))
        else:
            answers.append((write.upright(answered(scope, container, [rows], estimator)),))
        handed = answers[-1][0 if passed == "predict" else -1]
        handed = write("Log", handed) if passed == "predict_log_proba" else handed
        table = write("Concat", table, handed, axis=1)
    order = write.places(np.argsort(model.order_))
    for number, columns in enumerate(zip(*answers, strict=True)):
        joined = columns[0] if len(columns) == 1 else write("Concat", *columns, axis=1)
        kind = _INT64 if classifies and number == 0 else _FLOAT
        give(write.container, write("Cast", write("Gather", joined, order, axis=1), to=kind), operator, number)


def _variable(scope: Any, container: Any, table: str, width: int) -> Any:
    """Return ``table`` as what another operator takes."""
    from skl2onnx.common.data_types import FloatTensorType

    variable = scope.declare_local_variable("table", FloatTensorType([None, width]))
    container.add_node(
        "Identity", [table], [variable.full_name], name=scope.get_unique_operator_name("Identity"),
        op_version=container.target_opset,
    )  # fmt: skip
    return variable
