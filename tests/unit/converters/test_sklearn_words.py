"""Texts go through a vectoriser in ONNX as in scikit-learn, whatever its pattern and its stop words."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import FeatureUnion, make_pipeline

from converters.sklearn_tokens import pattern_in_re2

pytestmark = pytest.mark.sklearn
TEXTS = np.array(
    ["the movie was good", "a bad film indeed", "what great fun, 3 of 5", "an awful, awful plot!", "I don't like it",
     "It's naïve and it is a wonderful été", "boring; too long a film", "simply the best", "not my cup of tea"]
)  # fmt: skip
LIKED = np.array([1, 0, 1, 0, 0, 1, 0, 1, 0])
FEEDS = {"text": np.array([*TEXTS, "was the good a bad of the film", "", "the of a", "été, été naïve"])[:, None]}
OUTPUTS = [("label", ("batch",), "int64"), ("probabilities", ("batch", 2))]


@pytest.mark.parametrize(
    "vectoriser",
    [
        TfidfVectorizer(stop_words="english", ngram_range=(1, 2)),
        CountVectorizer(stop_words=["the", "a", "of", "was"], ngram_range=(1, 3)),
        CountVectorizer(stop_words=["the", "a", "of", "was"], ngram_range=(2, 2)),
        TfidfVectorizer(stop_words="english"),
        TfidfVectorizer(token_pattern=r"(?u)\b\w+\b", ngram_range=(1, 2)),
        TfidfVectorizer(token_pattern=r"\w{3,}"),
        TfidfVectorizer(token_pattern=r"[a-z]+(?:'[a-z]+)?"),
        TfidfVectorizer(token_pattern=r"\S+"),
        CountVectorizer(token_pattern=r"\d+|\w\w+"),
        FeatureUnion([("w", TfidfVectorizer()), ("b", CountVectorizer(ngram_range=(2, 2)))]),
        FeatureUnion(
            [("w", make_pipeline(TfidfVectorizer(), TruncatedSVD(3, random_state=0))), ("b", CountVectorizer())]
        ),
    ],
    ids=[
        "pairs",
        "threes",
        "only-pairs",
        "single",
        "letters",
        "long",
        "apostrophes",
        "spaces",
        "digits",
        "union",
        "deep",
    ],
)
def test_words_are_told_apart_and_paired_as_in_scikit_learn(same, vectoriser):
    same(make_pipeline(vectoriser, LogisticRegression()).fit(TEXTS, LIKED), FEEDS, OUTPUTS)


def test_neighbours_of_texts_are_rows_of_a_table(same):
    for weights in ("uniform", "distance"):
        nearest = make_pipeline(TfidfVectorizer(), KNeighborsClassifier(1, weights=weights)).fit(TEXTS, LIKED)
        same(nearest, {"text": TEXTS[:, None]}, OUTPUTS)


@given(
    st.text(alphabet="ab1_é中٣ ,.'-\n", max_size=30), st.sampled_from([r"(?u)\b\w\w+\b", r"\b\w+\b", r"\w{2,}", r"\w+"])
)
def test_a_word_is_the_same_without_boundaries_that_follow_by_themselves(text, pattern):
    written = pattern_in_re2(pattern)
    assert r"\b" not in written and "(?" not in written
    # What RE2 reads as these classes, Python reads as \w.
    assert re.findall(written.replace(r"[\p{L}\p{N}_]", r"\w"), text) == re.findall(pattern, text)


def test_a_boundary_that_does_not_follow_stays():
    assert pattern_in_re2(r"(?u)\b[a-z]{2,}\b") == r"\b[a-z]{2,}\b"
