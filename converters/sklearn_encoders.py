"""OneHotEncoder and OrdinalEncoder that put rare categories together: skl2onnx has them for some inputs only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from converters.arrays import Array
from converters.boosting_sklearn import Container
from converters.sklearn_extra import give

_DOUBLE, _FLOAT, _BOOL = 11, 1, 9


def register() -> None:
    """Make skl2onnx use these converters where rare categories are put together, and its own elsewhere."""
    from skl2onnx import update_registered_converter
    from skl2onnx.operator_converters import one_hot_encoder as one_hot
    from skl2onnx.operator_converters import ordinal_encoder as ordinal
    from skl2onnx.shape_calculators import one_hot_encoder as one_hot_shapes
    from skl2onnx.shape_calculators import ordinal_encoder as ordinal_shapes
    from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder

    for cls, ours, theirs in (
        (
            OneHotEncoder,
            (_one_hot_shape, _one_hot),
            (one_hot_shapes.calculate_sklearn_one_hot_encoder_output_shapes, one_hot.convert_sklearn_one_hot_encoder),
        ),
        (
            OrdinalEncoder,
            (_ordinal_shape, _ordinal),
            (ordinal_shapes.calculate_sklearn_ordinal_encoder_output_shapes, ordinal.convert_sklearn_ordinal_encoder),
        ),
    ):
        shape, convert = _chosen(ours, theirs)
        update_registered_converter(cls, f"Sklearn{cls.__name__}", shape, convert, overwrite=True)


def _chosen(ours: tuple[Any, Any], theirs: tuple[Any, Any]) -> tuple[Any, Any]:
    """Return a shape calculator and a converter that look at the encoder before they choose."""

    def groups(operator: Any) -> bool:
        return bool(getattr(operator.raw_operator, "_infrequent_enabled", False))

    def shape(operator: Any) -> None:
        (ours if groups(operator) else theirs)[0](operator)

    def convert(scope: Any, operator: Any, container: Any) -> None:
        (ours if groups(operator) else theirs)[1](scope, operator, container)

    return shape, convert


def _one_hot_shape(operator: Any) -> None:
    from skl2onnx.common.data_types import FloatTensorType

    encoder = operator.raw_operator
    operator.outputs[0].set_type(FloatTensorType([None, sum(encoder._n_features_outs)]))


def _ordinal_shape(operator: Any) -> None:
    from skl2onnx.common.data_types import FloatTensorType

    operator.outputs[0].set_type(FloatTensorType([None, len(operator.raw_operator.categories_)]))


def _one_hot(scope: Any, operator: Any, container: Any) -> None:
    """Which category it is, times the column that each category belongs to."""
    encoder = operator.raw_operator
    writer = Container(scope, container)
    parts = []
    for feature, matches in enumerate(_matches(writer, operator)):
        places, width = _places(encoder, feature)
        grouped = np.zeros((len(places), width), np.float32)
        grouped[np.arange(len(places)), places] = 1
        rare = encoder._infrequent_indices[feature]
        unknown = np.zeros((1, width), np.float32)
        if rare is not None and encoder.handle_unknown in ("infrequent_if_exist", "warn"):
            unknown[0, places[rare[0]]] = 1
        shown = writer.node("MatMul", [matches, writer.constant(grouped)])
        known = _any(writer, matches)
        shown = writer.node("Where", [known, shown, writer.constant(unknown)])
        dropped = None if encoder._drop_idx_after_grouping is None else encoder._drop_idx_after_grouping[feature]
        if dropped is not None:
            kept = np.delete(np.arange(width), int(dropped)).astype(np.int64)
            shown = writer.node("Gather", [shown, writer.constant(kept)], axis=1)
        parts.append(shown)
    give(writer, parts[0] if len(parts) == 1 else writer.node("Concat", parts, axis=1), operator)


def _ordinal(scope: Any, operator: Any, container: Any) -> None:
    """Which category it is, times the number that each category has."""
    encoder = operator.raw_operator
    writer = Container(scope, container)
    parts = []
    for feature, matches in enumerate(_matches(writer, operator)):
        places, _ = _places(encoder, feature)
        missing = _missing(encoder.categories_[feature])
        numbers = np.where(missing, 0, places).astype(np.float32)
        given = writer.node("MatMul", [matches, writer.constant(numbers[:, None])])
        if missing.any():
            absent = writer.node("MatMul", [matches, writer.constant(missing.astype(np.float32)[:, None])])
            value = np.array([[encoder.encoded_missing_value]], np.float32)
            given = writer.node("Where", [writer.node("Cast", [absent], to=_BOOL), writer.constant(value), given])
        if encoder.unknown_value is not None:
            value = np.array([[encoder.unknown_value]], np.float32)
            given = writer.node("Where", [_any(writer, matches), given, writer.constant(value)])
        parts.append(given)
    give(writer, parts[0] if len(parts) == 1 else writer.node("Concat", parts, axis=1), operator)


def _places(encoder: Any, feature: int) -> tuple[Array, int]:
    """Return the column of each category, those that are put together under one, and how many there are."""
    mapping = encoder._default_to_infrequent_mappings[feature]
    places = np.arange(len(encoder.categories_[feature])) if mapping is None else np.asarray(mapping, dtype=np.int64)
    if len(places) < len(encoder.categories_[feature]):
        # An OrdinalEncoder leaves the missing value, which is the last, out of what it counts.
        places = np.append(places, places.max(initial=-1) + 1)
    return places, int(places.max(initial=-1)) + 1


def _matches(writer: Container, operator: Any) -> Iterator[str]:
    """Yield for each feature a float table of rows by categories: 1 where the row has that category.

    Numbers are compared in float64, as scikit-learn does; a float32 0.1 is not the category 0.1 there either.
    """
    from skl2onnx.common.data_types import StringTensorType

    categories = operator.raw_operator.categories_
    for number, (column, text) in enumerate(_columns(writer, operator, StringTensorType)):
        values = np.asarray(categories[number])
        missing = _missing(values)
        if text:
            known = [str(value) for value in values[~missing]]
            codes = writer.node(
                "LabelEncoder", [column], domain="ai.onnx.ml", keys_strings=[value.encode() for value in known],
                values_int64s=np.flatnonzero(~missing).tolist(), default_int64=-1,
            )  # fmt: skip
            same = writer.node("Equal", [codes, writer.constant(np.arange(len(values), dtype=np.int64)[None])])
        else:
            wide = writer.node("Cast", [column], to=_DOUBLE)
            same = writer.node("Equal", [wide, writer.constant(values.astype(np.float64)[None])])
            if missing.any():
                nan = writer.node("And", [writer.node("IsNaN", [wide]), writer.constant(missing[None])])
                same = writer.node("Or", [same, nan])
        yield writer.node("Cast", [same], to=_FLOAT)


def _columns(writer: Container, operator: Any, strings: type[Any]) -> Iterator[tuple[str, bool]]:
    """Yield the operator's columns one by one, as (rows, 1), and whether each is of strings."""
    for variable in operator.inputs:
        text, width = isinstance(variable.type, strings), variable.get_second_dimension()
        if not isinstance(width, int):
            raise RuntimeError("An encoder's input does not say how many columns it has.")
        for position in range(width):
            where = writer.constant(np.array([position], np.int64))
            name = variable.full_name
            yield (name if width == 1 else writer.node("Gather", [name, where], axis=1)), text


def _missing(values: Array) -> Array:
    return np.array([value is None or value != value for value in values.tolist()], dtype=bool)


def _any(writer: Container, matches: str) -> str:
    """Return whether a row has one of the categories at all."""
    count = writer.node("ReduceSum", [matches, writer.constant(np.array([1], np.int64))], keepdims=1)
    return writer.node("Cast", [count], to=_BOOL)
