"""Run an XGBoost, LightGBM or CatBoost model in its own library: one table of numbers in, what it predicts out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from converters.arrays import Array, Arrays, plain
from converters.boosting_outputs import Outputs
from converters.domain import Domain
from converters.forest import Forest
from converters.model_errors import RAISED_BY_MODELS, first_line
from schemas.descriptor import BATCH_AXIS, Format, KnownBy, TensorSpec
from schemas.errors import ConversionFailed, ModelFailed, Unsupported
from schemas.step_io import StepContext

TABLE_INPUT = "X"
_CHOICES = 512
"""Values that a feature's samples are drawn from, at most."""
_UNKNOWN = 1
"""Above the largest category that a split names: one that none does."""


class Booster(ABC):
    """A loaded model of one library. ``table`` is float32, (batch, width)."""

    runtime: str
    width: int
    outputs: Outputs
    targets: int

    @abstractmethod
    def forest(self) -> Forest:
        """Return its trees. Raises ConversionFailed where they are in no form that is converted."""

    @abstractmethod
    def predict(self, table: Array) -> tuple[Any, ...]:
        """Return what the library itself predicts, one array for each name of ``outputs``."""

    def linear(self) -> tuple[Array, Array] | None:
        """Return weights (width, targets) and bias (targets,) where it is a linear model, else None."""
        return None


class _XGBoost(Booster):
    runtime = "xgboost"

    def __init__(self, booster: Any, threads: int) -> None:
        from converters import xgboost_forest

        self._booster = booster
        booster.set_param({"nthread": threads})
        self._learner = xgboost_forest.learner_of(booster)
        self.targets = xgboost_forest.count_targets(self._learner)
        self.outputs = xgboost_forest.outputs_of(self._learner, self.targets)
        self.width = int(self._learner["learner_model_param"]["num_feature"])
        best = booster.attr("best_iteration")
        # scikit-learn's wrapper predicts with the best iteration, and the booster itself with all.
        self.iterations = int(best) + 1 if best is not None and booster.attr("scikit_learn") is not None else None
        self._range = (0, self.iterations or 0)
        self._softmax = self._learner["objective"]["name"] == "multi:softmax"

    def forest(self) -> Forest:
        from converters import xgboost_forest

        return xgboost_forest.forest_of(self._learner, self.iterations)

    def linear(self) -> tuple[Array, Array] | None:
        from converters import xgboost_forest

        return xgboost_forest.linear_of(self._learner)

    def predict(self, table: Array) -> tuple[Any, ...]:
        if self.linear() is not None or self._softmax:
            import xgboost

            matrix = xgboost.DMatrix(
                table, nthread=1, feature_types=self._booster.feature_types, enable_categorical=True
            )
            given = self._booster.predict(
                matrix, output_margin=self._softmax, iteration_range=self._range, validate_features=False
            )
            if self._softmax:
                # This objective keeps its probabilities to itself.
                given = np.exp(given - given.max(1, keepdims=True))
                given /= given.sum(1, keepdims=True)
        else:
            given = self._booster.inplace_predict(table, iteration_range=self._range, validate_features=False)
        return _classified(self.outputs, np.asarray(given))


class _LightGBM(Booster):
    runtime = "lightgbm"

    def __init__(self, booster: Any, threads: int) -> None:
        from converters import lightgbm_forest

        self._booster, self._threads = booster, threads
        self._dump = booster.dump_model()
        self.outputs = lightgbm_forest.outputs_of(self._dump)
        self.targets = max(int(self._dump["num_tree_per_iteration"]), 1)
        self.width = int(self._dump["max_feature_idx"]) + 1

    def forest(self) -> Forest:
        from converters import lightgbm_forest

        return lightgbm_forest.forest_of(self._dump)

    def predict(self, table: Array) -> tuple[Any, ...]:
        return _classified(self.outputs, self._booster.predict(table.astype(np.float64), num_threads=self._threads))


class _CatBoost(Booster):
    runtime = "catboost"

    def __init__(self, model: Any, threads: int) -> None:
        from converters import catboost_forest

        self._model, self._threads = model, threads
        _check_numeric(model)
        self.outputs = catboost_forest.outputs_of(model)
        self.width = len(model.feature_names_)
        margins = np.asarray(model.predict(np.zeros((2, self.width), np.float32), prediction_type="RawFormulaVal"))
        self.targets = 1 if margins.ndim == 1 else margins.shape[1]

    def forest(self) -> Forest:
        from converters import catboost_forest

        return catboost_forest.forest_of(self._model)

    def predict(self, table: Array) -> tuple[Any, ...]:
        def ask(what: str) -> Any:
            return np.asarray(self._model.predict(table, prediction_type=what, thread_count=self._threads))

        if self.outputs.task == "multilabel":
            probabilities = 1 / (1 + np.exp(-ask("RawFormulaVal")))
            return (probabilities > 0.5).astype(np.int64), probabilities
        if self.outputs.task == "classification":
            labels = ask("Class").reshape(-1)
            if self.outputs.classes.dtype.kind == "i":
                labels = labels.astype(np.float64).astype(np.int64)
            return labels, ask("Probability")
        asked = {"exp": "Exponent", "variance": "RMSEWithUncertainty"}
        return (ask(asked.get(self.outputs.link, "RawFormulaVal")),)


class BoostingRunner:
    """A boosted model as it was saved. Features are numbers, float32; NaN is a missing one."""

    def __init__(self, booster: Booster) -> None:
        """Wrap a loaded model."""
        self.booster = booster
        self.runtime = booster.runtime
        shape = (BATCH_AXIS, booster.width)
        self.inputs = (TensorSpec(name=TABLE_INPUT, dtype="float32", shape=shape, known_by=KnownBy.PROBE),)
        self.outputs: tuple[TensorSpec, ...] = ()
        """Known from running; see the ``probe`` step."""

    @classmethod
    def load(cls, context: StepContext) -> BoostingRunner:
        """Load input ``model``. Raises ModelFailed when its library refuses it; only ever in the sandbox."""
        from converters.runners import descriptor_of

        path, descriptor = context.input("model"), descriptor_of(context)
        file = path / descriptor.entry if path.is_dir() and descriptor.entry else path
        runner = cls(load_booster(file, descriptor.format, threads=context.request.threads))
        runner.outputs = descriptor.outputs
        return runner

    @property
    def domains(self) -> Mapping[str, Domain]:
        """For each feature values on, between and beyond the thresholds of the trees; gaps; unknown categories."""
        try:
            forest = self.booster.forest()
        except ConversionFailed:
            return {TABLE_INPUT: Domain(missing=True)}
        rng = np.random.default_rng(0)
        columns: list[Array | None] = [None] * self.booster.width
        for feature, values in forest.thresholds().items():
            columns[feature] = around(values, rng)
        for feature, values in forest.categories().items():
            columns[feature] = np.append(values, values.max(initial=0) + _UNKNOWN)
        return {TABLE_INPUT: Domain(columns=tuple(columns), missing=True)}

    def run(self, feeds: Mapping[str, Array]) -> Arrays:
        """Return the outputs by name. Raises ModelFailed when the model refuses these inputs."""
        given = self._call(self._table(feeds))
        return {name: _kept(name, value) for name, value in zip(self.booster.outputs.names, given, strict=True)}

    def bind(self, feeds: Mapping[str, Array]) -> Callable[[], object]:
        """Return a call that predicts once on a table that is already made."""
        table = self._table(feeds)
        return lambda: self._call(table)

    def _call(self, table: Array) -> tuple[Any, ...]:
        try:
            return self.booster.predict(table)
        except library_errors() as error:
            raise ModelFailed(
                f"The original could not run: {first_line(error)}.", hint=f"It takes {self.booster.width} columns."
            ) from error

    def _table(self, feeds: Mapping[str, Array]) -> Array:
        if TABLE_INPUT not in feeds:
            raise ModelFailed(f"The model takes an input {TABLE_INPUT!r} that was not given.")
        return np.ascontiguousarray(feeds[TABLE_INPUT], dtype=np.float32)


def load_booster(path: Path, format_: Format, *, threads: int) -> Booster:
    """Load a model file in its library; a pickled booster executes what it says, so only in the sandbox.

    Raises ModelFailed for what the library does not take.
    """
    with path.open("rb") as handle:
        pickled = handle.read(1) == b"\x80"
    try:
        if pickled:
            import joblib

            held = joblib.load(path)
        else:
            held = _read(path, format_)
        match format_:
            case Format.XGBOOST:
                return _XGBoost(held, threads)
            case Format.LIGHTGBM:
                return _LightGBM(held, threads)
            case Format.CATBOOST:
                return _CatBoost(held, threads)
    except Unsupported:
        raise
    except library_errors() as error:
        raise ModelFailed(
            f"{format_.value} cannot load this file: {first_line(error)}.",
            hint="It may be damaged, or saved by another version; save it again with a current one.",
        ) from error
    raise Unsupported(f"Models of format {format_.value} are not run here.")


def booster_of(estimator: Any, library: str) -> Booster:
    """Return the model inside a fitted estimator of scikit-learn's kind, for its trees. It predicts as that does."""
    match library:
        case "xgboost":
            booster = _XGBoost(estimator.get_booster(), 1)
            best = estimator.get_booster().attr("best_iteration")
            booster.iterations = int(best) + 1 if best is not None else None
            return booster
        case "lightgbm":
            return _LightGBM(estimator.booster_, 1)
    return _CatBoost(estimator, 1)


def _read(path: Path, format_: Format) -> Any:
    match format_:
        case Format.XGBOOST:
            import xgboost

            # The library tells text from binary by the name's end.
            data = path.read_bytes()
            booster = xgboost.Booster()
            booster.load_model(bytearray(data))
            return booster
        case Format.LIGHTGBM:
            import lightgbm

            return lightgbm.Booster(model_str=path.read_text(encoding="utf-8", errors="replace"))
    import catboost

    model = catboost.CatBoost()
    model.load_model(str(path))
    if len(np.asarray(getattr(model, "classes_", ()))):
        model = catboost.CatBoostClassifier()
        model.load_model(str(path))
    return model


def _check_numeric(model: Any) -> None:
    for kind, indices in (
        ("categorical", model.get_cat_feature_indices()),
        ("text", model.get_text_feature_indices()),
        ("embedding", model.get_embedding_feature_indices()),
    ):
        if len(indices):
            raise Unsupported(
                f"This CatBoost model was trained with {len(indices)} {kind} features, whose hashes and statistics "
                "ONNX has no operator for; only models of numeric features are converted.",
                hint="Encode them as numbers in a pipeline before the model (for example with OrdinalEncoder), or "
                "serve the .cbm file with CatBoost itself.",
            )


def around(thresholds: Array, rng: np.random.Generator) -> Array:
    """Return float32 values on, between and beyond sorted ``thresholds``, as float64; at most a few hundred."""
    spread = max(float(thresholds[-1] - thresholds[0]), abs(float(thresholds[-1])), 1e-3)
    between = (thresholds[1:] + thresholds[:-1]) / 2
    beyond = np.array([thresholds[0] - spread / 4, thresholds[-1] + spread / 4])
    found: Array = np.concatenate([thresholds, between])
    if len(found) > _CHOICES:
        found = rng.choice(found, _CHOICES, replace=False)
    with np.errstate(over="ignore"):
        found = np.unique(np.concatenate([found, beyond]).astype(np.float32)).astype(np.float64)
    return found[np.isfinite(found)]


def _classified(outputs: Outputs, given: Array) -> tuple[Any, ...]:
    """Return the label beside the probabilities that a library gives alone; what it gives for other tasks."""
    if outputs.task == "multilabel":
        return (given > 0.5).astype(np.int64), given
    if outputs.task != "classification":
        return (given,)
    if given.ndim == 1:
        given = np.stack([1 - given, given], axis=1)
    return outputs.classes[given.argmax(1)], given


def _kept(name: str, value: Any) -> Array:
    array = np.asarray(value)
    if name == "label":
        return plain(array) if array.dtype.kind in "OUS" else array.astype(np.int64)
    array = array.reshape(-1, 1) if array.ndim == 1 else array
    return array.astype(np.float32)


def library_errors() -> tuple[type[Exception], ...]:
    """Return what the loaded libraries raise: XGBoostError and LightGBMError are no RuntimeErrors of Python's own."""
    import sys

    found: list[type[Exception]] = list(RAISED_BY_MODELS)
    for module, name in (
        ("xgboost.core", "XGBoostError"), ("lightgbm.basic", "LightGBMError"), ("_catboost", "CatBoostError"),
    ):  # fmt: skip
        if module in sys.modules:
            found.append(getattr(sys.modules[module], name))
    return tuple(found)
