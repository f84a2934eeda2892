"""ClassifierChain and RegressorChain: each model is given the table and what the models before it said."""

from __future__ import annotations

from typing import Any

import numpy as np

_FLOAT, _INT64, _DOUBLE = 1, 7, 11


def register() -> None:
    """Make skl2onnx use this converter; again and again does no harm."""
    from skl2onnx import update_registered_converter
    from sklearn.multioutput import ClassifierChain, RegressorChain

    for cls in (ClassifierChain, RegressorChain):
        options = {"zipmap": [True, False, "columns"], "raw_scores": [True, False], "nocl": [True, False],
                   "output_class_labels": [False, True]}  # fmt: skip
        update_registered_converter(
            cls, f"Modelium{cls.__name__}", _shape, _convert, parser=_parse, overwrite=True,
            options=options if cls is ClassifierChain else {},
        )  # fmt: skip


def _parse(scope: Any, model: Any, inputs: Any, custom_parsers: Any = None) -> Any:
    from skl2onnx.common.data_types import FloatTensorType

    operator = scope.declare_local_operator(f"Modelium{type(model).__name__}", model)
    operator.inputs.extend(inputs)
    for name in ("label", "probabilities") if hasattr(model, "chain_method_") else ("variable",):
        operator.outputs.append(scope.declare_local_variable(name, FloatTensorType()))
    return operator.outputs


def _shape(operator: Any) -> None:
    from skl2onnx.common.data_types import FloatTensorType, Int64TensorType

    shape = [None, len(operator.raw_operator.estimators_)]
    classifies = len(operator.outputs) == 2
    operator.outputs[0].set_type((Int64TensorType if classifies else FloatTensorType)(shape))
    for variable in operator.outputs[1:]:
        variable.set_type(FloatTensorType(shape))


def _convert(scope: Any, operator: Any, container: Any) -> None:
    from skl2onnx.algebra.onnx_ops import OnnxCast, OnnxConcat, OnnxGather, OnnxLog
    from skl2onnx.common.data_types import DoubleTensorType

    model, version = operator.raw_operator, container.target_opset
    wide = all(isinstance(variable.type, DoubleTensorType) for variable in operator.inputs)
    element = _DOUBLE if wide else _FLOAT

    def cast(tensor: Any, to: int) -> Any:
        return OnnxCast(tensor, to=to, op_version=version)

    tables = [cast(variable, element) for variable in operator.inputs]
    table = tables[0] if len(tables) == 1 else OnnxConcat(*tables, axis=1, op_version=version)
    classifies = len(operator.outputs) == 2
    chances = classifies and hasattr(model, "predict_proba")
    passed = getattr(model, "chain_method_", "predict")
    if passed not in ("predict", *(("predict_proba", "predict_log_proba") if chances else ("decision_function",))):
        raise RuntimeError(f"{type(model).__name__} passes {passed} on beside the answers that it gives itself.")
    answers: list[list[Any]] = []
    for estimator in model.estimators_:
        width = model.n_features_in_ + len(answers)
        answers.append(_answers(estimator, table, width=width, wide=wide, raw=not chances, version=version))
        said = answers[-1][0] if passed == "predict" else answers[-1][-1]
        said = OnnxLog(said, op_version=version) if passed == "predict_log_proba" else said
        table = OnnxConcat(table, cast(said, element), axis=1, op_version=version)
    order = np.argsort(model.order_).astype(np.int64)
    for number, (variable, columns) in enumerate(zip(operator.outputs, zip(*answers, strict=True), strict=False)):
        to = _INT64 if classifies and number == 0 else _FLOAT
        joined = OnnxConcat(*(cast(column, to) for column in columns), axis=1, op_version=version)
        OnnxGather(joined, order, axis=1, op_version=version, output_names=[variable]).add_to(scope, container)


def _answers(estimator: Any, table: Any, *, width: int, wide: bool, raw: bool, version: int) -> list[Any]:
    """Return one model's label or prediction and, of a classifier, the second class's score, as (rows, 1) each."""
    from skl2onnx._supported_operators import sklearn_operator_name_map
    from skl2onnx.algebra.onnx_operator import OnnxSubEstimator
    from skl2onnx.algebra.onnx_ops import OnnxGather, OnnxReshape
    from skl2onnx.common._registration import get_converter
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType
    from sklearn.base import is_classifier

    column = np.array([-1, 1], np.int64)
    options: dict[str, bool] | None = None
    if is_classifier(estimator):
        wanted = {"zipmap": False, "raw_scores": True} if raw else {"zipmap": False}
        alias = sklearn_operator_name_map.get(type(estimator))
        known = set(get_converter(alias).get_allowed_options() or {}) if alias is not None else set(wanted)
        options = {name: value for name, value in wanted.items() if name in known}
    given = OnnxSubEstimator(
        estimator, table, op_version=version, options=options,
        input_types=[(DoubleTensorType if wide else FloatTensorType)([None, width])],
    )  # fmt: skip
    if options is None:
        return [OnnxReshape(given, column, op_version=version)]
    # The scores of two classes may come as one column or as two; the second class's is the last.
    score = OnnxGather(given[1], np.array([-1], np.int64), axis=1, op_version=version)
    return [OnnxReshape(given[0], column, op_version=version), score]
