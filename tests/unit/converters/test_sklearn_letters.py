"""Letters of texts are counted, and words and letters hashed, in ONNX as in scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.pipeline import make_pipeline

pytestmark = pytest.mark.sklearn
TEXTS = np.array(
    ["the movie was good", "a bad  film \t indeed", "what great fun, 3 of 5", "an awful, awful plot!",
     "I don't like it",
     "It's naïve and it is\na wonderful été", "boring; too long a film", "simply the best", "中文 好 a\u3000b"]
)  # fmt: skip
LIKED = np.array([1, 0, 1, 0, 0, 1, 0, 1, 0])
FEEDS = {
    "text": np.array([*TEXTS, "", " ", "a", "a b", " a ", "aa\n\nbb", "\ta  a", "ÉTÉ I", "x" * 40, "##", "\x02\x03"])[
        :, None
    ]
}
OUTPUTS = [("label", ("batch",), "int64"), ("probabilities", ("batch", 2))]


@pytest.mark.parametrize("analyzer", ["char", "char_wb"])
@pytest.mark.parametrize("ngrams", [(1, 1), (2, 4), (3, 3), (4, 5)], ids=str)
def test_letters_are_counted_in_a_row_and_inside_words(same, analyzer, ngrams):
    for vectoriser in (
        TfidfVectorizer(analyzer=analyzer, ngram_range=ngrams),
        CountVectorizer(analyzer=analyzer, ngram_range=ngrams, binary=True, lowercase=False, max_features=40),
    ):
        same(make_pipeline(vectoriser, LogisticRegression()).fit(TEXTS, LIKED), FEEDS, OUTPUTS)


def test_one_text_without_a_letter_is_a_batch(same):
    for analyzer in ("char", "char_wb"):
        model = make_pipeline(CountVectorizer(analyzer=analyzer), LogisticRegression()).fit(TEXTS, LIKED)
        same(model, {"text": np.array([[""]])}, OUTPUTS)


@pytest.mark.parametrize(
    "vectoriser",
    [
        HashingVectorizer(n_features=64),
        HashingVectorizer(n_features=32, ngram_range=(1, 3), norm="l1", stop_words=["a", "the"]),
        HashingVectorizer(n_features=64, ngram_range=(2, 2), alternate_sign=False, norm=None, token_pattern=r"\w+"),
        HashingVectorizer(n_features=16, binary=True, lowercase=False),
        HashingVectorizer(n_features=128, analyzer="char", ngram_range=(2, 3)),
        HashingVectorizer(n_features=128, analyzer="char_wb", ngram_range=(3, 5)),
    ],
    ids=["words", "stops", "pairs", "binary", "letters", "letters-of-words"],
)
def test_words_and_letters_are_hashed_into_the_same_columns(same, vectoriser):
    same(make_pipeline(vectoriser, LogisticRegression()).fit(TEXTS, LIKED), FEEDS, OUTPUTS)


def test_a_linear_model_behind_a_million_columns_is_served(same):
    model = make_pipeline(HashingVectorizer(), SGDClassifier(loss="log_loss", random_state=0)).fit(TEXTS, LIKED)
    same(model, {"text": FEEDS["text"][:3]}, OUTPUTS)
