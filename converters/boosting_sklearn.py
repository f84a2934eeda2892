"""XGBoost, LightGBM and CatBoost estimators inside scikit-learn: what they need to run, and skl2onnx converters."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from converters.arrays import Array
from converters.boosting_outputs import Outputs, write_outputs
from converters.boosting_runner import Booster, around, booster_of
from converters.domain import Domain
from converters.forest import Forest, write_margins
from schemas.errors import ConversionFailed

_ALIAS = "ModeliumBoosted"
_GAP = "_modelium_gap"
"""Attribute of an XGBoost estimator: the value that stands for a missing one in the table that it gets."""


def library_of(estimator: Any) -> str | None:
    """Return xgboost, lightgbm or catboost for an estimator of theirs."""
    for cls in type(estimator).__mro__:
        root = cls.__module__.partition(".")[0]
        if root in ("xgboost", "lightgbm", "catboost"):
            return root
    return None


def boosted(estimator: Any) -> Iterator[Any]:
    """Yield the boosting estimators inside ``estimator``, however it holds them."""
    if library_of(estimator) is not None:
        yield estimator
        return
    members: list[Any] = [part for _, part in getattr(estimator, "steps", ())]
    members += [transformer for _, transformer, _ in getattr(estimator, "transformers_", ())]
    for name in ("best_estimator_", "estimator_", "final_estimator_", "regressor_", "estimator"):
        members.append(vars(estimator).get(name) if hasattr(estimator, "__dict__") else None)
    for name in ("estimators_", "calibrated_classifiers_"):
        found = getattr(estimator, name, None)
        if found is not None:
            members += list(np.asarray(found, dtype=object).reshape(-1))
    for member in members:
        if member is not None and not isinstance(member, str) and hasattr(member, "__dict__"):
            yield from boosted(member)


def limit_threads(estimator: Any, threads: int) -> None:
    """Have every boosting estimator inside predict on ``threads`` threads."""
    for part in boosted(estimator):
        match library_of(part):
            case "xgboost" if hasattr(part, "_Booster"):
                part.get_booster().set_param({"nthread": threads})
            case "catboost":
                # A fitted CatBoost model takes no new parameters, only arguments of its methods.
                for name in ("predict", "predict_proba"):
                    method = getattr(part, name, None)
                    if method is not None:
                        setattr(part, name, functools.partial(method, thread_count=threads))


def outputs_of(estimator: Any) -> Outputs:
    """Return what the estimator's predict and predict_proba give."""
    booster = _booster(estimator)
    classes = np.asarray(getattr(estimator, "classes_", ()))
    outputs = booster.outputs
    if outputs.task == "classification" and len(classes):
        from converters.catboost_forest import classes_of

        return Outputs("classification", outputs.link, classes_of(estimator), outputs.scale)
    return outputs


def domain_of(estimator: Any) -> Domain | None:
    """Return values around the thresholds of a boosting estimator's trees; None where they cannot be read."""
    try:
        forest = _forest(estimator)
    except ConversionFailed:
        return None
    rng = np.random.default_rng(0)
    columns: list[Array | None] = [None] * forest.width
    for feature, values in forest.thresholds().items():
        columns[feature] = around(values, rng)
    for feature, values in forest.categories().items():
        columns[feature] = np.append(values, values.max(initial=0) + 1)
    return Domain(columns=tuple(columns))


def note_gaps(estimator: Any, table: Any) -> None:
    """Tell every XGBoost estimator what stands for a missing value in what it gets when ``table`` goes in.

    XGBoost takes the zeros of a sparse table for missing, and a graph of tensors has no sparse tables.
    """
    from scipy.sparse import issparse

    for part in boosted(estimator):
        if library_of(part) != "xgboost":
            continue
        missing = getattr(part, "missing", None)
        if missing is not None and not np.isnan(missing):
            setattr(part, _GAP, float(missing))
    steps = getattr(estimator, "steps", None)
    if steps and len(steps) > 1 and library_of(steps[-1][1]) == "xgboost" and issparse(estimator[:-1].transform(table)):
        setattr(steps[-1][1], _GAP, 0.0)


def _booster(estimator: Any) -> Booster:
    library = library_of(estimator)
    assert library is not None
    return booster_of(estimator, library)


def _forest(estimator: Any) -> Forest:
    booster = _booster(estimator)
    if booster.linear() is not None:
        raise ConversionFailed(
            "A linear XGBoost booster inside a pipeline is not converted.",
            hint="Use scikit-learn's own linear models, or save the booster alone.",
        )
    return booster.forest()


def register() -> None:
    """Make skl2onnx convert the estimators of the libraries that are installed; again and again does no harm."""
    from skl2onnx import update_registered_converter

    for cls in _classes():
        update_registered_converter(
            cls,
            _ALIAS + cls.__name__,
            _shape,
            _convert,
            parser=_parse,
            overwrite=True,
            options={"zipmap": [True, False, "columns"], "raw_scores": [True, False], "nocl": [True, False],
                     "output_class_labels": [False, True]},
        )  # fmt: skip


def _classes() -> Iterator[type[Any]]:
    from importlib import import_module
    from importlib.util import find_spec

    for module, names in (
        ("xgboost", "XGBClassifier XGBRegressor XGBRanker XGBRFClassifier XGBRFRegressor"),
        ("lightgbm", "LGBMClassifier LGBMRegressor LGBMRanker"),
        ("catboost", "CatBoostClassifier CatBoostRegressor CatBoostRanker CatBoost"),
    ):
        if find_spec(module) is not None:
            yield from (getattr(import_module(module), name) for name in names.split())


def _parse(scope: Any, model: Any, inputs: Any, custom_parsers: Any = None) -> Any:
    from skl2onnx.common.data_types import FloatTensorType

    operator = scope.declare_local_operator(_ALIAS + type(model).__name__, model)
    operator.inputs.extend(inputs)
    for name in outputs_of(model).names:
        operator.outputs.append(scope.declare_local_variable(name, FloatTensorType()))
    return operator.outputs


def _shape(operator: Any) -> None:
    from skl2onnx.common.data_types import FloatTensorType, Int64TensorType, StringTensorType

    outputs, targets = outputs_of(operator.raw_operator), _booster(operator.raw_operator).targets
    for name, variable in zip(outputs.names, operator.outputs, strict=False):
        if name == "label" and outputs.task == "classification":
            kind = StringTensorType if outputs.classes.dtype.kind == "U" else Int64TensorType
            variable.set_type(kind([None]))
        elif name == "label":
            variable.set_type(Int64TensorType([None, targets]))
        else:
            columns = 2 if name == "probabilities" and targets == 1 else targets
            variable.set_type(FloatTensorType([None, columns]))


class Container:
    """A GraphWriter over skl2onnx's scope and container."""

    def __init__(self, scope: Any, container: Any) -> None:
        """Write into ``container``, with names of ``scope``."""
        self.scope, self.container = scope, container

    def node(self, op_type: str, inputs: Sequence[str], *, domain: str = "", **attributes: Any) -> str:
        """Add a node and return the name of its one output."""
        output: str = self.scope.get_unique_variable_name(f"{_ALIAS}_{op_type}")
        self.container.add_node(
            op_type,
            list(inputs),
            [output],
            op_domain=domain,
            op_version={"": self.container.target_opset, "ai.onnx.ml": 3}.get(domain, 1),
            name=self.scope.get_unique_operator_name(op_type),
            **attributes,
        )
        return output

    def constant(self, array: Array) -> str:
        """Add an initializer and return its name."""
        from onnx import TensorProto, helper

        name: str = self.scope.get_unique_variable_name(f"{_ALIAS}_constant")
        if array.dtype.kind in "OUS":
            element, values = TensorProto.STRING, [str(value).encode() for value in array.reshape(-1)]
        else:
            element, values = helper.np_dtype_to_tensor_dtype(array.dtype), array.reshape(-1).tolist()
        self.container.add_initializer(name, element, list(array.shape), values)
        return name


def asks_scores(container: Any, estimator: Any) -> bool:
    """Whether what ``estimator`` decides by is asked for, not probabilities."""
    return bool(container.get_options(estimator, {"raw_scores": False})["raw_scores"])


def _convert(scope: Any, operator: Any, container: Any) -> None:
    from skl2onnx.common.data_types import DoubleTensorType

    estimator = operator.raw_operator
    writer = Container(scope, container)
    forest = _forest(estimator)
    forest.gap = getattr(estimator, _GAP, None)
    # LightGBM compares in float64, and so does its operator where what comes before it is computed so.
    wide = forest.exact_float64 and all(isinstance(variable.type, DoubleTensorType) for variable in operator.inputs)
    tables = [writer.node("Cast", [variable.full_name], to=11 if wide else 1) for variable in operator.inputs]
    table = tables[0] if len(tables) == 1 else writer.node("Concat", tables, axis=1)
    margins = write_margins(writer, forest, table, wide=wide)
    if wide:
        # onnxruntime's operator gives float32 whatever it takes.
        margins = writer.node("Cast", [margins], to=1)
    given = write_outputs(
        writer, outputs_of(estimator), margins, len(forest.base), raw=asks_scores(container, estimator)
    )
    for tensor, variable in zip(given.values(), operator.outputs, strict=False):
        container.add_node(
            "Identity", [tensor], [variable.full_name], name=scope.get_unique_operator_name("Identity"),
            op_version=container.target_opset,
        )  # fmt: skip
