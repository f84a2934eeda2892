"""Run a scikit-learn estimator or pipeline: named columns in, labels, probabilities or predictions out."""

from __future__ import annotations

import contextlib
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import numpy as np

from converters.arrays import Array, Arrays, plain
from converters.boosting_runner import library_errors
from converters.boosting_sklearn import domain_of, library_of, limit_threads
from converters.domain import Domain
from converters.model_errors import RAISED_BY_MODELS, first_line
from converters.sentences import SENTENCES
from schemas.descriptor import BATCH_AXIS, DType, KnownBy, TensorSpec
from schemas.errors import ModelFailed, Unsupported
from schemas.step_io import StepContext

RAISED_BY_LOADING: tuple[type[Exception], ...] = (pickle.UnpicklingError, *RAISED_BY_MODELS)
MATRIX_INPUT = "X"
"""Name of the one input of an estimator whose columns are all numbers."""
UNKNOWN = "a value never seen"
"""A category that no encoder was fitted on."""
_MOST_GAPS = 512
_REMEMBERED = 4096
"""Rows of an estimator's memory that samples are near."""
TEXT_INPUT = "text"
"""Name of the one input of a pipeline that begins with a vectoriser."""


@dataclass(frozen=True)
class Column:
    """One column of the table an estimator was fitted on."""

    name: str
    dtype: DType
    domain: Domain


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
        self.text = is_vectoriser(steps_of(estimator)[0])
        _check_table(steps_of(estimator)[0])
        self.width = 1 if self.text else _width(estimator)
        self.columns = _columns(estimator, self.width)
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
        domain = _matrix_domain(self.estimator)
        domain = replace(domain, positive=domain.positive or self._needs_positive(domain))
        return {MATRIX_INPUT: replace(domain, missing=self._takes_missing(domain))}

    def _needs_positive(self, domain: Domain) -> bool:
        """Whether usual values run only without those below zero, as before a logarithm."""
        if domain.columns or not all(hasattr(step, "transform") for step in steps_of(self.estimator)[:1]):
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
            estimator = _from_skops(path) if is_zipfile(path) else joblib.load(path)
    except (*RAISED_BY_LOADING, *library_errors()) as error:
        raise ModelFailed(
            f"scikit-learn cannot load this file: {first_line(error).rstrip('.')}.",
            hint="It may have been saved by another version of scikit-learn; save it again with this one.",
        ) from error
    if not hasattr(estimator, "get_params"):
        raise ModelFailed(
            f"The file holds a {type(estimator).__name__}, not a fitted scikit-learn estimator.",
            hint="Save the fitted estimator or pipeline itself with joblib.dump.",
        )
    return estimator


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


def steps_of(estimator: Any) -> list[Any]:
    """Return the estimators of a pipeline in order, nested pipelines and searches opened; else ``[estimator]``."""
    inner = getattr(estimator, "best_estimator_", estimator)
    steps = getattr(inner, "steps", None)
    if steps is None:
        return [inner]
    return [part for _, step in steps if step is not None and step != "passthrough" for part in steps_of(step)]


def use_positions(estimator: Any) -> None:
    """Have every ColumnTransformer choose its columns by position instead of by name.

    What is served is one matrix or one tensor a column, and neither needs pandas, whose tables have names.
    """
    for part in steps_of(estimator):
        positions = getattr(part, "_transformer_to_input_indices", None)
        if positions is None or not hasattr(part, "transformers_"):
            continue
        part.transformers_ = [
            (name, transformer, _positions(positions.get(name, []), columns))
            for name, transformer, columns in part.transformers_
        ]
        for _, transformer, _ in part.transformers_:
            if transformer is not None and not isinstance(transformer, str):
                use_positions(transformer)


def _positions(positions: Any, columns: Any) -> list[int] | int:
    """Return where the columns are; a column that was named alone comes to its transformer without an axis."""
    found = [int(i) for i in positions]
    return found[0] if isinstance(columns, str | int | np.integer) and found else found


def _width(estimator: Any) -> int:
    for part in [estimator, *steps_of(estimator)]:
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


def is_vectoriser(part: Any) -> bool:
    """Whether ``part`` makes features of texts: CountVectorizer, TfidfVectorizer, HashingVectorizer."""
    return hasattr(part, "build_analyzer")


def _texts(vectoriser: Any) -> Domain:
    """Return texts of words that the vectoriser knows, mixed with the built-in sentences, whose words it may not."""
    words = sorted(getattr(vectoriser, "vocabulary_", {}))
    rng = np.random.default_rng(0)
    known = [" ".join(rng.choice(words, size=int(rng.integers(1, 12)))) for _ in range(64)] if words else []
    return Domain(choices=plain(np.array([*known, *SENTENCES], dtype=object)))


def _columns(estimator: Any, width: int) -> tuple[Column, ...]:
    """Return the columns one by one when some are strings; () when the whole table is one matrix of numbers."""
    transformers: list[tuple[Any, list[int]]] = []
    first = steps_of(estimator)[0]
    if hasattr(first, "transformers_"):
        indices = getattr(first, "_transformer_to_input_indices", {})
        for name, transformer, _ in first.transformers_:
            transformers.append((transformer, [int(i) for i in indices.get(name, [])]))
    else:
        transformers.append((first, list(range(width))))
    categories: dict[int, Array] = {}
    open_ended: set[int] = set()
    domains: dict[int, Domain] = {}
    texts: dict[int, Domain] = {}
    for transformer, positions in transformers:
        if transformer is None or isinstance(transformer, str):
            continue
        for part in steps_of(transformer):
            if is_vectoriser(part) and positions:
                texts[positions[0]] = _texts(part)
            known = getattr(part, "categories_", None)
            if known is not None and len(known) == len(positions):
                categories.update(zip(positions, (np.asarray(values) for values in known), strict=True))
                open_ended.update(positions if _takes_unknown(part) else ())
            scale = _scaled(part)
            if scale.centre is not None and scale.spread is not None and len(scale.centre) == len(positions):
                for at, position in enumerate(positions):
                    domains[position] = Domain(centre=scale.centre[at : at + 1], spread=scale.spread[at : at + 1])
    if not texts and not any(values.dtype.kind in "OUS" for values in categories.values()):
        return ()
    names = [str(name) for name in getattr(estimator, "feature_names_in_", ())] or [f"column_{i}" for i in range(width)]
    if is_vectoriser(first):
        names = [TEXT_INPUT]
    columns = []
    for position in range(width):
        values = categories.get(position)
        dtype: DType = "float32"
        domain = domains.get(position, Domain())
        if position in texts:
            dtype, domain = "string", texts[position]
        elif values is not None:
            known_values = [v for v in values if isinstance(v, str) or not _is_nan(v)]
            if values.dtype.kind in "OUS" and position in open_ended:
                known_values.append(UNKNOWN)
            if values.dtype.kind in "OUS":
                dtype, domain = "string", Domain(choices=plain(np.array(known_values, dtype=object)))
            else:
                dtype = "int64" if values.dtype.kind in "iu" else "float32"
                domain = Domain(choices=np.asarray(values))
        columns.append(Column(names[position], dtype, domain))
    return tuple(columns)


def _takes_unknown(encoder: Any) -> bool:
    """Whether an encoder has an answer for a category that it was not fitted on."""
    how = getattr(encoder, "handle_unknown", None)
    return how in ("ignore", "infrequent_if_exist", "use_encoded_value", "warn") or hasattr(encoder, "target_mean_")


def _is_nan(value: Any) -> bool:
    return value is None or (isinstance(value, float) and bool(np.isnan(value)))


def _matrix_domain(estimator: Any) -> Domain:
    """Return where the features of one matrix of numbers lie; those with categories have those alone."""
    scaled = _scaled(estimator)
    first = steps_of(estimator)[0]
    transformers = [("", first, None)]
    indices: Mapping[str, Any] = {}
    if hasattr(first, "transformers_"):
        transformers, indices = first.transformers_, getattr(first, "_transformer_to_input_indices", {})
    found: dict[int, Array] = {}
    for name, transformer, _ in transformers:
        part = None if transformer is None or isinstance(transformer, str) else steps_of(transformer)[0]
        known = getattr(part, "categories_", None)
        counts = getattr(part, "n_categories_", None)
        if known is None and counts is not None:
            known = [np.arange(count) for count in counts]
        if known is not None:
            positions = [int(i) for i in indices[name]] if name in indices else list(range(len(known)))
            found.update(zip(positions, (np.asarray(values, dtype=np.float64) for values in known), strict=False))
    columns = tuple(found.get(position) for position in range(max(found, default=-1) + 1)) or scaled.columns
    return replace(scaled, columns=columns, positive=_positive_only(first))


def _positive_only(first: Any) -> bool:
    from sklearn.utils import get_tags

    try:
        return bool(get_tags(first).input_tags.positive_only) or getattr(first, "method", "") == "box-cox"
    except (AttributeError, TypeError):
        return False


def _scaled(estimator: Any) -> Domain:
    """Return where the features lie: a scaler's mean and spread, or the range of a forest's thresholds."""
    for part in steps_of(estimator):
        mean, scale = getattr(part, "mean_", None), getattr(part, "scale_", None)
        if isinstance(mean, np.ndarray) and isinstance(scale, np.ndarray) and mean.shape == scale.shape:
            return Domain(centre=mean, spread=scale)
        low, high = getattr(part, "data_min_", None), getattr(part, "data_max_", None)
        if isinstance(low, np.ndarray) and isinstance(high, np.ndarray):
            return Domain(centre=(low + high) / 2, spread=np.maximum((high - low) / 4, 1e-6))
        if library_of(part) is not None:
            return domain_of(part) or Domain()
        thresholds = _thresholds(part) or _remembered(part)
        if thresholds is not None:
            return thresholds
        if part is not estimator and type(part).__name__ != "SimpleImputer":
            break
    return Domain()


def _remembered(part: Any) -> Domain | None:
    """Return where the rows lie that an estimator keeps: its training data, support vectors or centres.

    Far from them a kernel is zero and a neighbour is none, and every candidate would agree.
    """
    for name in ("_fit_X", "X_train_", "support_vectors_", "cluster_centers_", "means_", "theta_"):
        rows = getattr(part, name, None)
        if isinstance(rows, np.ndarray) and rows.ndim == 2 and rows.shape[1] == getattr(part, "n_features_in_", 0):
            rows = rows.astype(np.float64)
            if len(rows) > 1 and np.isfinite(rows).all():
                return Domain(centre=rows.mean(0), spread=np.maximum(rows.std(0), 1e-6), rows=rows[:_REMEMBERED])
    return None


def _thresholds(part: Any) -> Domain | None:
    members = np.asarray(getattr(part, "estimators_", [part]), dtype=object).reshape(-1)
    trees = [member for member in members if hasattr(member, "tree_")]
    width = getattr(part, "n_features_in_", 0)
    if not trees or not width:
        return None
    centre, spread = np.zeros(width), np.ones(width)
    features = np.concatenate([t.tree_.feature for t in trees[:50]])
    values = np.concatenate([t.tree_.threshold for t in trees[:50]])
    # A split that only asks whether the value is missing has an infinite threshold.
    features[~np.isfinite(values)] = -1
    # The trees of a chain split on what the trees before them said, too.
    features[features >= width] = -1
    for feature in np.unique(features[features >= 0]):
        mine = values[features == feature]
        centre[feature], spread[feature] = mine.mean(), max(float(mine.std()), 1e-3)
    return Domain(centre=centre, spread=spread)


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
