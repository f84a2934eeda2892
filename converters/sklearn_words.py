"""CountVectorizer and TfidfVectorizer: token patterns of Python's, and stop words between the two words of a pair.

skl2onnx hands a pattern on as it is, though RE2 knows neither ``(?u)`` nor letters beyond ASCII, and leaves stop words
where they are, so that the words around one are no pair.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from converters import sklearn_letters
from converters.boosting_sklearn import Container
from converters.sklearn_tokens import pattern_in_re2

_theirs: list[Callable[..., None]] = []
"""skl2onnx's own converter."""


def register() -> None:
    """Make skl2onnx use this; again and again does no harm."""
    from skl2onnx import update_registered_converter
    from skl2onnx._supported_operators import sklearn_operator_name_map
    from skl2onnx.common._registration import get_converter, get_shape_calculator
    from sklearn.feature_extraction.text import CountVectorizer

    if _theirs:
        return
    # A TfidfVectorizer is written as one of these, with itself as the model, and what weighs the counts.
    alias = sklearn_operator_name_map[CountVectorizer]
    _theirs.append(get_converter(alias))
    options = get_converter(alias).get_allowed_options()
    update_registered_converter(
        CountVectorizer, alias, get_shape_calculator(alias), _convert, overwrite=True, options=options
    )


def _convert(scope: Any, operator: Any, container: Any) -> None:
    model = operator.raw_operator
    if model.analyzer in ("char", "char_wb"):
        sklearn_letters.write(scope, operator, container)
        return
    if model.analyzer == "word" and model.tokenizer is None:
        container.add_options(id(model), {"tokenexp": pattern_in_re2(model.token_pattern)})
    start = len(container.nodes)
    _theirs[0](scope, operator, container)
    stops = sorted(model.get_stop_words() or ()) if model.analyzer == "word" else ()
    if not stops or model.ngram_range[1] == 1:
        return
    added = container.nodes[start:]
    [counted] = [node for node in added if node.op_type == "TfIdfVectorizer"]
    [split] = [node for node in added if node.op_type == "Tokenizer"]
    pad = next(attribute.s for attribute in split.attribute if attribute.name == "pad_value").decode()
    counted.input[0] = without(Container(scope, container), counted.input[0], stops, pad)


def without(writer: Container, words: str, stops: list[str], pad: str) -> str:
    """Return ``words``, [N, words], without those of ``stops``: what is left moves up, pads follow."""
    node = writer.node
    zero, last = writer.constant(np.array([0], np.int64)), writer.constant(np.array([-1], np.int64))
    kept = node("LabelEncoder", [words], domain="ai.onnx.ml", keys_strings=[*stops, pad],
                values_int64s=[0] * (len(stops) + 1), default_int64=1)  # fmt: skip
    many = node("Gather", [node("Shape", [words]), last], axis=0)
    first = node("Squeeze", [zero])
    places = node(
        "Range", [first, node("Squeeze", [many]), node("Squeeze", [writer.constant(np.array([1], np.int64))])]
    )
    is_kept = node("Cast", [kept], to=9)
    order = node("Where", [is_kept, places, node("Add", [places, many])])
    sorted_keys, moved = (writer.scope.get_unique_variable_name(name) for name in ("order", "moved"))
    writer.container.add_node(
        "TopK", [order, many], [sorted_keys, moved], axis=-1, largest=0, sorted=1,
        name=writer.scope.get_unique_operator_name("TopK"), op_version=writer.container.target_opset,
    )  # fmt: skip
    left = node("GatherElements", [words, moved], axis=-1)
    over = node("Less", [sorted_keys, many])
    return node("Where", [over, left, writer.constant(np.array([pad], object))])
