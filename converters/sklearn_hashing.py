"""HashingVectorizer: the words or letters of a text, each counted in the column that its hash names."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.feature_extraction.text import HashingVectorizer

from converters.boosting_sklearn import Container
from converters.sklearn_extra import give, of_length_one
from converters.sklearn_tokens import PAD, letters, letters_of_words, neighbours, refuse_what_is_own, texts, words
from converters.sklearn_words import without

_SHORTEST_WORD = 3
"""Letters of a word of one, with its blanks: ``char_wb`` counts what is shorter than its fewest letters whole."""


def register() -> None:
    """Make skl2onnx use this; again and again does no harm."""
    from skl2onnx import update_registered_converter

    update_registered_converter(HashingVectorizer, "ModeliumHashing", _shape, _convert, overwrite=True)


def _shape(operator: Any) -> None:
    from skl2onnx.common.data_types import FloatTensorType

    rows = operator.inputs[0].get_first_dimension()
    operator.outputs[0].type = FloatTensorType([rows, operator.raw_operator.n_features])


def _convert(scope: Any, operator: Any, container: Any) -> None:
    model, writer = operator.raw_operator, Container(scope, container)
    refuse_what_is_own(model)
    node, constant = writer.node, writer.constant
    fewest, most = model.ngram_range
    if model.analyzer == "char_wb" and fewest > _SHORTEST_WORD:
        raise RuntimeError(f"HashingVectorizer that counts {fewest} letters of a word or more has no form in ONNX")
    column = texts(writer, operator, lowercase=model.lowercase)
    if model.analyzer == "word":
        tokens = words(writer, column, model.token_pattern)
        stops = sorted(model.get_stop_words() or ())
        tokens = without(writer, tokens, stops, PAD) if stops else tokens
    else:
        tokens = (letters if model.analyzer == "char" else letters_of_words)(writer, column)
    found = [neighbours(writer, tokens, count, " " * (model.analyzer == "word")) for count in range(fewest, most + 1)]
    entries, absent = (
        (node("Concat", list(part), axis=1) if len(part) > 1 else part[0]) for part in zip(*found, strict=True)
    )
    hashed = node("MurmurHash3", [entries], domain="com.microsoft", positive=0, seed=0)
    wide = node("Cast", [hashed], to=7)
    places = node("Mod", [node("Abs", [wide]), constant(np.array([model.n_features], np.int64))])
    one, nothing = constant(np.array([1], np.float32)), constant(np.array([0], np.float32))
    value = one
    if model.alternate_sign and not model.binary:
        value = node(
            "Where",
            [node("Less", [wide, constant(np.array([0], np.int64))]), constant(np.array([-1], np.float32)), one],
        )
    counts = node("Where", [absent, nothing, value])
    rows = node(
        "Slice", [node("Shape", [entries]), constant(np.array([0], np.int64)), constant(np.array([1], np.int64))]
    )
    table = node("Expand", [nothing, node("Concat", [rows, constant(np.array([model.n_features], np.int64))], axis=0)])
    summed = node("ScatterElements", [table, places, counts], axis=1, reduction="add")
    if model.binary:
        summed = node("Cast", [node("Greater", [summed, nothing])], to=1)
    if model.norm is not None:
        summed = of_length_one(writer, summed, model.norm, np.float32)
    give(writer, summed, operator)
