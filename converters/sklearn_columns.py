"""Columns: selections of features, and column transformers that stand behind other steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from converters.boosting_sklearn import Container

_parse_columns: Callable[..., Any] | None = None


def register() -> None:
    """Make skl2onnx use these; again and again does no harm."""
    from skl2onnx import update_registered_converter
    from skl2onnx._parse import sklearn_parsers_map, update_registered_parser
    from skl2onnx._supported_operators import sklearn_operator_name_map
    from skl2onnx.common._registration import get_shape_calculator
    from sklearn.compose import ColumnTransformer
    from sklearn.feature_selection import SelectorMixin

    global _parse_columns
    for cls, alias in list(sklearn_operator_name_map.items()):
        if isinstance(cls, type) and issubclass(cls, SelectorMixin):
            update_registered_converter(cls, alias, get_shape_calculator(alias), _selected, overwrite=True)
    if _parse_columns is None:
        _parse_columns = sklearn_parsers_map[ColumnTransformer]
        update_registered_parser(ColumnTransformer, _parse)


def _selected(scope: Any, operator: Any, container: Any) -> None:
    """The features that a selection keeps; skl2onnx writes a broken graph where that is the first alone."""
    kept = np.asarray(operator.raw_operator.get_support(indices=True), np.int64)
    if not len(kept):
        raise RuntimeError(f"{type(operator.raw_operator).__name__} keeps no feature.")
    writer = Container(scope, container)
    container.add_node(
        "Gather", [operator.inputs[0].full_name, writer.constant(kept)], [operator.outputs[0].full_name],
        name=scope.get_unique_operator_name("Gather"), axis=1, op_version=container.target_opset,
    )  # fmt: skip


def _parse(scope: Any, model: Any, inputs: Any, custom_parsers: Any = None) -> Any:
    """Tell a column transformer how wide the one table before it is: nobody knows yet what an earlier step gives.

    skl2onnx takes a choice of as many columns as there are for all of them in order. Where one turns them round, the
    table is said to be a column wider meanwhile.
    """
    assert _parse_columns is not None
    if len(inputs) != 1 or len(inputs[0].type.shape or ()) not in (0, 2):
        return _parse_columns(scope, model, inputs, custom_parsers=custom_parsers)
    width = model.n_features_in_
    chosen = [list(columns) for _, _, columns in model.transformers_ if isinstance(columns, list | np.ndarray)]
    turned = any(len(columns) == width and columns != list(range(width)) for columns in chosen)
    inputs[0].type.shape = [None, width + turned]
    outputs = _parse_columns(scope, model, inputs, custom_parsers=custom_parsers)
    inputs[0].type.shape = [None, width]
    return outputs
