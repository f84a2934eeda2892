"""Run a scikit-learn estimator or pipeline: named columns in, labels, probabilities or predictions out."""

from __future__ import annotations

import contextlib
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import numpy as np

from converters.arrays import Array, Arrays, plain
from converters.boosting_runner import library_errors
from converters.boosting_sklearn import library_of, limit_threads
from converters.domain import Domain
from converters.model_errors import RAISED_BY_MODELS, first_line
from converters.sklearn_domain import columns_of, matrix_domain
from converters.sklearn_steps import everything, is_vectoriser, leading, steps_of
from schemas.descriptor import BATCH_AXIS, KnownBy, TensorSpec
from schemas.errors import ModelFailed, Unsupported
from schemas.step_io import StepContext

RAISED_BY_LOADING: tuple[type[Exception], ...] = (pickle.UnpicklingError, *RAISED_BY_MODELS)
MATRIX_INPUT = "X"
"""Name of the one input of an estimator whose columns are all numbers."""
_DEPTH = 4
"""Of dicts and lists around an estimator that are looked into."""
_MOST_GAPS = 512
"""Columns of which each is tried with a gap."""


class SklearnRunner:
    """A fitted estimator. Numbers reach it as float64, as a person's own script would have them."""

    runtime = "sklearn"

    def __init__(self, estimator: Any) -> None:
        """Wrap a fitted ``estimator``. Raises ModelFailed for one that is not fitted, Unsupported for one without
        outputs that a tensor can carry.
        """
        self.estimator = estimator
        use_positions(estimator)
        _check_fitted(estimator)
        first = steps_of(leading(estimator))[0]
        self.text = is_vectoriser(first)
        _check_table(first)
        self.width = 1 if self.text else _width(estimator)
        self.columns = columns_of(estimator, self.width)
        self._calls = _calls(estimator)
        self.inputs = self._inputs()
        self.outputs: tuple[TensorSpec, ...] = ()
        """Known from running; see the ``probe`` step."""

    @classmethod
    def load(cls, context: StepContext) -> SklearnRunner:
        """Load input ``model``, which executes what the pickle says: only ever inside the sandbox."""
        from converters.runners import descriptor_of

        path, descriptor = context.input("model"), descriptor_of(context)
        file = path / descriptor.entry if path.is_dir() and descriptor.entry else path
        estimator = load_estimator(file)
        jobs = [key for key in estimator.get_params() if key == "n_jobs" or key.endswith("__n_jobs")]
        if jobs:
            # A forest saved with n_jobs=-1 would take every core, while the others keep to the request's threads.
            estimator.set_params(**dict.fromkeys(jobs, context.request.threads))
        limit_threads(estimator, context.request.threads)
        runner = cls(estimator)
        runner.outputs = descriptor.outputs
        return runner

    @property
    def domains(self) -> Mapping[str, Domain]:
        """Categories of string columns, and the mean and spread that a scaler inside was fitted on."""
        if self.columns:
            return {column.name: column.domain for column in self.columns}
        domain = matrix_domain(self.estimator)
        domain = replace(domain, positive=domain.positive or self._needs_positive(domain))
        return {MATRIX_INPUT: replace(domain, missing=self._takes_missing(domain))}

    def _needs_positive(self, domain: Domain) -> bool:
        """Whether usual values run only without those below zero, as before a logarithm."""
        if domain.columns or not all(hasattr(step, "transform") for step in steps_of(leading(self.estimator))[:1]):
            return False
        rows = np.random.default_rng(0).standard_normal((8, self.width))
        if domain.centre is not None and domain.spread is not None:
            rows = rows * domain.spread + domain.centre
        try:
            self._guarded(rows)
        except ModelFailed:
            try:
                self._guarded(np.abs(rows) + 1e-3)
            except ModelFailed:
                return False
            return True
        return False

    def _takes_missing(self, domain: Domain) -> bool:
        """Whether a row of usual values with one missing runs: through imputers and trees, not through much else."""
        row = np.ones((1, self.width)) if domain.centre is None else np.array(domain.centre, dtype=np.float64)[None]
        for feature, choices in enumerate(domain.columns):
            if choices is not None and len(choices):
                row[0, feature] = choices[0]
        gap = np.repeat(row, min(self.width, _MOST_GAPS), axis=0)
        np.fill_diagonal(gap, np.nan)  # one that takes a gap here may not take one there
        try:
            # CatBoost makes what it is given read-only.
            self._guarded(row)
            self._guarded(gap)
        except ModelFailed:
            return False
        return True

    def run(self, feeds: Mapping[str, Array]) -> Arrays:
        """Return the outputs by name. Raises ModelFailed when the estimator refuses these inputs."""
        given = self._guarded(self.table(feeds))
        return {each: _kept(name, part) for name, value in given.items() for each, part in _parts(name, value).items()}

    def bind(self, feeds: Mapping[str, Array]) -> Callable[[], object]:
        """Return a call that runs every output's method once on a table that is already made."""
        table = self.table(feeds)
        return lambda: self._guarded(table)

    def _guarded(self, table: Array) -> dict[str, Any]:
        try:
            # Pipelines fitted on named columns warn about every plain table.
            with quiet():
                return {name: call(table) for name, call in self._calls.items()}
        except library_errors() as error:
            raise ModelFailed(
                f"The original could not run: {first_line(error).rstrip('.')}.",
                hint=f"It takes {self.width} columns.",
            ) from error

    def table(self, feeds: Mapping[str, Array]) -> Array:
        """Return what the estimator's methods take. Raises ModelFailed where an input is not given."""
        missing = [spec.name for spec in self.inputs if spec.name not in feeds]
        if missing:
            raise ModelFailed(f"The model takes an input {missing[0]!r} that was not given.")
        if not self.columns:
            return np.asarray(feeds[MATRIX_INPUT]).astype(np.float64)
        columns = [np.asarray(feeds[column.name]).reshape(-1, 1).astype(object) for column in self.columns]
        # A vectoriser takes texts, not a table of one column.
        return columns[0][:, 0] if self.text else np.concatenate(columns, axis=1)

    def _inputs(self) -> tuple[TensorSpec, ...]:
        if not self.columns:
            shape = (BATCH_AXIS, self.width)
            return (TensorSpec(name=MATRIX_INPUT, dtype="float32", shape=shape, known_by=KnownBy.PROBE),)
        return tuple(
            TensorSpec(name=c.name, dtype=c.dtype, shape=(BATCH_AXIS, 1), known_by=KnownBy.PROBE) for c in self.columns
        )


def load_estimator(path: Path) -> Any:
    """Unpickle an estimator (joblib, also compressed, or pickle). Executes what the file says: sandbox only."""
    import joblib

    try:
        with quiet():
            held = _from_skops(path) if is_zipfile(path) else joblib.load(path)
    except (*RAISED_BY_LOADING, *library_errors()) as error:
        raise ModelFailed(
            f"scikit-learn cannot load this file: {first_line(error).rstrip('.')}.",
            hint="It may have been saved by another version of scikit-learn; save it again with this one.",
        ) from error
    estimators = list(_estimators(held, _DEPTH))
    estimator = estimators[0] if len(estimators) == 1 else held
    if not _is_estimator(estimator):
        raise ModelFailed(
            f"The file holds a {type(held).__name__}, not a fitted scikit-learn estimator.",
            hint="Save the fitted estimator or pipeline itself with joblib.dump.",
        )
    return estimator


def _estimators(held: Any, depth: int) -> Iterator[Any]:
    """Yield the estimators in dicts, lists and tuples, but for label encoders: the analyzer let one alone pass."""
    if _is_estimator(held):
        if type(held).__name__ != "LabelEncoder":
            yield held
    elif depth and isinstance(held, dict | list | tuple):
        for inner in held.values() if isinstance(held, dict) else held:
            yield from _estimators(inner, depth - 1)


def _is_estimator(value: Any) -> bool:
    return hasattr(value, "get_params") and not isinstance(value, type)


def _from_skops(path: Path) -> Any:
    """Load a skops file. The analyzer has judged every class that its schema names; those alone are trusted."""
    import skops.io

    return skops.io.load(path, trusted=skops.io.get_untrusted_types(file=path))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings: about versions and feature names, which a person can do nothing about here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def use_positions(estimator: Any) -> None:
    """Have every ColumnTransformer choose its columns by position instead of by name.

    What is served is one matrix or one tensor a column, and neither needs pandas, whose tables have names.
    """
    for part in everything(estimator):
        positions = getattr(part, "_transformer_to_input_indices", None)
        if positions is None or not hasattr(part, "transformers_"):
            continue
        part.transformers_ = [
            (name, transformer, _positions(positions.get(name, []), columns))
            for name, transformer, columns in part.transformers_
        ]


def _positions(positions: Any, columns: Any) -> list[int] | int:
    """Return where the columns are; a column that was named alone comes to its transformer without an axis."""
    found = [int(i) for i in positions]
    return found[0] if isinstance(columns, str | int | np.integer) and found else found


def _width(estimator: Any) -> int:
    for part in [estimator, *steps_of(leading(estimator))]:
        try:
            width = getattr(part, "n_features_in_", None)
        except AttributeError:
            width = None
        if library_of(part) == "catboost":
            # A model that was loaded from a pickle says 0.
            width = len(part.feature_names_)
        if isinstance(width, int | np.integer):
            return int(width)
    raise Unsupported(
        f"{type(estimator).__name__} does not take a table of columns: it does not say how many.",
        hint="Save an estimator that was fitted on a two-dimensional table, or a pipeline that begins with one.",
    )


def _check_fitted(estimator: Any) -> None:
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    holds = any(hasattr(estimator, name) for name in ("best_estimator_", "estimator_"))
    if getattr(estimator, "refit", True) is False and hasattr(estimator, "cv") and not holds:
        raise ModelFailed(
            f"This {type(estimator).__name__} was made with refit=False and holds no model.",
            hint="Fit an estimator with the best_params_ that it found, and save that.",
        )
    with quiet():
        try:
            check_is_fitted(estimator)
        except NotFittedError:
            raise ModelFailed(
                f"The {type(estimator).__name__} in this file is not fitted.", hint="Save it after calling fit."
            ) from None
        except TypeError:
            # No estimator of scikit-learn's own make; running it will tell.
            return


def _check_table(first: Any) -> None:
    """Raise Unsupported for what takes dicts, one column of labels or a matrix of distances."""
    from sklearn.utils import get_tags

    with quiet():
        try:
            takes = get_tags(first).input_tags
        except (AttributeError, TypeError):
            return
    if not is_vectoriser(first) and (not takes.two_d_array or takes.pairwise):
        raise Unsupported(
            f"{type(first).__name__} does not take a table with a row for each sample.",
            hint="Save an estimator that was fitted on a two-dimensional table of features, or a pipeline that begins "
            "with one.",
        )


def _calls(estimator: Any) -> dict[str, Callable[[Array], Any]]:
    """Return output name to the method that computes it, the same names that ``sklearn_onnx`` gives the graph."""
    from sklearn.base import is_classifier, is_clusterer, is_outlier_detector, is_regressor

    with quiet():
        if is_classifier(estimator):
            calls: dict[str, Callable[[Array], Any]] = {"label": estimator.predict}
            if hasattr(estimator, "predict_proba"):
                calls["probabilities"] = estimator.predict_proba
            elif hasattr(estimator, "decision_function"):
                calls["scores"] = estimator.decision_function
            return calls
        if is_regressor(estimator):
            return {"prediction": estimator.predict}
        if library_of(steps_of(estimator)[-1]) is not None:
            return {"scores": estimator.predict}
        if is_outlier_detector(estimator) and hasattr(estimator, "predict"):
            return {"label": estimator.predict, "scores": estimator.decision_function}
        if hasattr(estimator, "predict") and (is_clusterer(estimator) or not hasattr(estimator, "transform")):
            return {"label": estimator.predict}
        if hasattr(estimator, "transform"):
            return {"transformed": estimator.transform}
    raise Unsupported(
        f"{type(estimator).__name__} can neither predict nor transform new rows.",
        hint="Save an estimator that has predict or transform.",
    )


def _parts(name: str, value: Any) -> dict[str, Any]:
    """Return an output by name; one for each target where an estimator predicts several at once."""
    if isinstance(value, list | tuple):
        return {f"{name}_{number}": part for number, part in enumerate(value)}
    return {name: value}


def _kept(name: str, value: Any) -> Array:
    array = np.asarray(value.toarray() if hasattr(value, "toarray") else value)
    if name == "label":
        if array.dtype.kind in "OUS":
            return plain(array)
        return array.astype(np.int64)
    if array.dtype.kind not in "biuf":
        return plain(array)
    # skl2onnx gives a regressor's single target, and a two-class score, an axis of its own.
    array = array.reshape(-1, 1) if array.ndim == 1 else array
    return array.astype(np.float32) if array.dtype.kind == "f" else array
