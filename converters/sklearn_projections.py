"""Transformers that project a table: kernels' samplers, components, distances to centres; skl2onnx has none of them.

KMeans and LinearDiscriminantAnalysis it has as the last step of a pipeline only, where they predict.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from converters.boosting_sklearn import Container
from converters.sklearn_extra import give
from converters.sklearn_members import declare
from converters.sklearn_table import Table, kernel_of, squares


class Distances(KMeans):  # type: ignore[misc]
    """A KMeans that transforms."""


class BatchDistances(MiniBatchKMeans):  # type: ignore[misc]
    """A MiniBatchKMeans that transforms."""


class Discriminants(LinearDiscriminantAnalysis):  # type: ignore[misc]
    """A LinearDiscriminantAnalysis that transforms."""


_TRANSFORMING: dict[type[Any], type[Any]] = {
    KMeans: Distances,
    MiniBatchKMeans: BatchDistances,
    LinearDiscriminantAnalysis: Discriminants,
}


def mark_transforming(estimator: Any, *, transforms: bool = False) -> None:
    """Turn estimators that could predict, and stand where they transform, into ones that this module converts.

    Only the last step of a pipeline predicts, and only where the pipeline ``transforms`` nothing for others.
    """
    if isinstance(estimator, str) or estimator is None:
        return
    steps = [step for _, step in getattr(estimator, "steps", ())]
    for number, step in enumerate(steps):
        mark_transforming(step, transforms=transforms or number < len(steps) - 1)
    beside = getattr(estimator, "transformers_", getattr(estimator, "transformer_list", ()))
    for _, transformer, *_ in beside:
        mark_transforming(transformer, transforms=True)
    if transforms and type(estimator) in _TRANSFORMING:
        estimator.__class__ = _TRANSFORMING[type(estimator)]


def register() -> None:
    """Make skl2onnx use these converters; again and again does no harm."""
    from skl2onnx import update_registered_converter
    from sklearn.cluster import FeatureAgglomeration
    from sklearn.decomposition import FactorAnalysis, FastICA, MiniBatchSparsePCA, SparsePCA
    from sklearn.feature_selection import SequentialFeatureSelector
    from sklearn.kernel_approximation import AdditiveChi2Sampler, Nystroem, RBFSampler, SkewedChi2Sampler

    written: dict[type[Any], _Write] = {
        FactorAnalysis: _factors,
        FastICA: _ica,
        MiniBatchSparsePCA: _sparse_components,
        SparsePCA: _sparse_components,
        RBFSampler: _rbf,
        SkewedChi2Sampler: _skewed,
        AdditiveChi2Sampler: _additive,
        Nystroem: _nystroem,
        FeatureAgglomeration: _pooled,
        SequentialFeatureSelector: _selected,
        Distances: _distances,
        BatchDistances: _distances,
        Discriminants: _discriminants,
    }
    for cls, write in written.items():
        alias = f"Modelium{cls.__name__}"
        parse = declare(alias, ("variable",))
        update_registered_converter(cls, alias, _shape, _converter(write), parser=parse, overwrite=True)


_Write = Callable[[Any, Table], str]


def _converter(write: _Write) -> Callable[[Any, Any, Any], None]:
    def convert(scope: Any, operator: Any, container: Any) -> None:
        writer = Container(scope, container)
        give(writer, write(operator.raw_operator, Table(operator, writer)), operator)

    return convert


def _shape(operator: Any) -> None:
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType

    wide = all(isinstance(variable.type, DoubleTensorType) for variable in operator.inputs)
    width = len(operator.raw_operator.get_feature_names_out())
    operator.outputs[0].set_type((DoubleTensorType if wide else FloatTensorType)([None, width]))


def _ica(model: Any, table: Table) -> str:
    centred = table.shifted(model.mean_) if model.whiten else table.name
    return table.product(centred, model.components_.T)


def _factors(model: Any, table: Table) -> str:
    weighed = model.components_ / model.noise_variance_
    inner = np.linalg.inv(np.eye(len(weighed)) + weighed @ model.components_.T)
    return table.product(table.shifted(model.mean_), weighed.T @ inner)


def _sparse_components(model: Any, table: Table) -> str:
    """A ridge regression of each row on the components."""
    parts = np.asarray(model.components_, dtype=np.float64)
    inner = np.linalg.inv(parts @ parts.T + model.ridge_alpha * np.eye(len(parts)))
    return table.product(table.shifted(model.mean_), parts.T @ inner)


def _rbf(model: Any, table: Table) -> str:
    projected = table("Add", table.product(table.name, model.random_weights_), table.numbers(model.random_offset_))
    return table("Mul", table("Cos", projected), table.numbers(np.sqrt(2 / model.n_components)))


def _skewed(model: Any, table: Table) -> str:
    logged = table("Log", table("Add", table.name, table.numbers(model.skewedness)))
    projected = table("Add", table.product(logged, model.random_weights_), table.numbers(model.random_offset_))
    return table("Mul", table("Cos", projected), table.numbers(np.sqrt(2 / model.n_components)))


def _additive(model: Any, table: Table) -> str:
    """Samples of the additive chi squared kernel's spectrum; a zero stays zero."""
    usual = {1: 0.8, 2: 0.5, 3: 0.4}
    interval = model.sample_interval if model.sample_interval is not None else usual[model.sample_steps]
    zero, one = table.numbers(0), table.numbers(1)
    empty = table("Equal", table.name, zero)
    safe = table("Where", empty, one, table.name)
    parts = [table("Sqrt", table("Mul", table.name, table.numbers(interval)))]
    angle = table("Mul", table("Log", safe), table.numbers(interval))
    for number in range(1, model.sample_steps):
        factor = table("Sqrt", table("Mul", safe, table.numbers(2 * interval / np.cosh(np.pi * number * interval))))
        turned = table("Mul", angle, table.numbers(number))
        for wave in ("Cos", "Sin"):
            parts.append(table("Where", empty, zero, table("Mul", table(wave, turned), factor)))
    return parts[0] if len(parts) == 1 else table("Concat", *parts, axis=1)


def _nystroem(model: Any, table: Table) -> str:
    kernel = kernel_of(
        table, model.kernel, model.components_, gamma=model.gamma, degree=model.degree, coef0=model.coef0
    )
    return table.product(kernel, model.normalization_.T)


def _selected(model: Any, table: Table) -> str:
    places = np.flatnonzero(model.get_support()).astype(np.int64)
    return table("Gather", table.name, table.writer.constant(places), axis=1)


def _pooled(model: Any, table: Table) -> str:
    if model.pooling_func is not np.mean:
        raise RuntimeError("FeatureAgglomeration is converted where it takes the mean.")
    labels = np.asarray(model.labels_)
    share = (labels[:, None] == np.arange(model.n_clusters_)).astype(np.float64)
    return table.product(table.name, share / share.sum(axis=0))


def _distances(model: Any, table: Table) -> str:
    return table("Sqrt", squares(table, np.asarray(model.cluster_centers_)))


def _discriminants(model: Any, table: Table) -> str:
    centred = table.shifted(model.xbar_) if model.solver == "svd" else table.name
    return table.product(centred, model.scalings_[:, : model._max_components])
