"""CountVectorizer and TfidfVectorizer that count letters (``char`` and ``char_wb``), which skl2onnx does not write."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from converters.boosting_sklearn import Container
from converters.sklearn_extra import give
from converters.sklearn_tokens import letters, letters_of_words, refuse_what_is_own, texts


def write(scope: Any, operator: Any, container: Any) -> None:
    """Count the letters in a row that are in the vocabulary of ``operator``'s estimator.

    A word that is shorter than the fewest letters counted is counted whole: it begins and ends with a blank as nothing
    inside a longer one does, so that an entry of its own length finds it and nothing else.
    """
    model, writer = operator.raw_operator, Container(scope, container)
    refuse_what_is_own(model)
    column = texts(writer, operator, lowercase=model.lowercase)
    tokens = (letters if model.analyzer == "char" else letters_of_words)(writer, column)
    by_length: dict[int, list[tuple[str, int]]] = defaultdict(list)
    for entry, place in sorted(model.vocabulary_.items(), key=lambda item: item[1]):
        by_length[len(entry)].append((entry, int(place)))
    pool: list[str] = []
    starts: list[int] = []
    places: list[int] = []
    for length in range(1, max(by_length) + 1):
        starts.append(len(pool))
        for entry, place in by_length[length]:
            pool += entry
            places.append(place)
    shortest = min(by_length)
    counted = writer.node(
        "TfIdfVectorizer", [tokens], mode="TF", min_gram_length=shortest, max_gram_length=max(by_length),
        max_skip_count=0, pool_strings=pool, ngram_counts=starts, ngram_indexes=places,
    )  # fmt: skip
    if model.binary:
        counted = writer.node(
            "Cast", [writer.node("Greater", [counted, writer.constant(np.float32(0).reshape(1))])], to=1
        )
    give(writer, counted, operator)
