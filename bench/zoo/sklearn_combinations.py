"""The scikit-learn part of the zoo, continued: steps together, with options that are not the defaults.

Converters of single estimators are mostly right; what is wrong hides where one step meets the next. What is known to be
refused is here, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Fit = Callable[[], Any]


def combinations() -> Iterator[tuple[str, Fit]]:
    """Yield name and training of each."""
    yield from _tables()
    yield from _decisions()
    yield from _texts()


def _rows() -> tuple[Any, Any, Any, Any]:
    """Return a table, two classes, three classes and a number to tell of each row, which depend on it."""
    table = np.random.default_rng(0).normal(size=(200, 5))
    score = table[:, 0] * 2 + table[:, 2]
    return table, (score > 0).astype(int), np.digitize(score, [-1, 1]), score


def _tables() -> Iterator[tuple[str, Fit]]:
    from sklearn.compose import ColumnTransformer, TransformedTargetRegressor, make_column_transformer
    from sklearn.decomposition import PCA
    from sklearn.feature_selection import RFE, SelectFromModel, SelectKBest
    from sklearn.impute import MissingIndicator, SimpleImputer
    from sklearn.kernel_approximation import Nystroem
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.model_selection import GridSearchCV, RandomizedSearchCV
    from sklearn.pipeline import FeatureUnion, make_pipeline
    from sklearn.preprocessing import (
        KBinsDiscretizer,
        MinMaxScaler,
        PolynomialFeatures,
        PowerTransformer,
        SplineTransformer,
        StandardScaler,
    )
    from sklearn.tree import DecisionTreeClassifier

    x, two, _, score = _rows()
    gaps = np.where(np.random.default_rng(1).random(x.shape) < 0.1, np.nan, x)
    halves = ColumnTransformer([("a", MinMaxScaler(), [0, 1]), ("b", "passthrough", [2, 3])])
    turned = ColumnTransformer([("all", StandardScaler(), [4, 2, 0, 3, 1])])
    bins = ColumnTransformer([("b", KBinsDiscretizer(4), [0]), ("p", PolynomialFeatures(2), [1, 2])])
    mask = make_column_transformer((StandardScaler(), [True, False, True, False, True]), remainder=MinMaxScaler())
    union = FeatureUnion([("p", PCA(2, whiten=True)), ("k", SelectKBest(k=1))])
    marked = FeatureUnion([("filled", SimpleImputer()), ("gaps", MissingIndicator())])
    yield "table-columns-behind-imputer", lambda: make_pipeline(SimpleImputer(), halves, Ridge()).fit(gaps, score)
    yield "table-columns-turned", lambda: make_pipeline(turned, Ridge()).fit(x, score)
    yield "table-columns-by-mask", lambda: make_pipeline(mask, Ridge()).fit(x, score)
    yield "table-bins-and-powers", lambda: make_pipeline(bins, Ridge()).fit(x, score)
    yield "table-first-feature", lambda: make_pipeline(union, LogisticRegression()).fit(x, two)
    yield "table-eliminated", lambda: make_pipeline(RFE(Ridge(), n_features_to_select=2), Ridge()).fit(x, score)
    yield (
        "table-selected-by-tree",
        lambda: make_pipeline(SelectFromModel(DecisionTreeClassifier(max_depth=3)), LogisticRegression()).fit(x, two),
    )
    yield (
        "table-log-target",
        lambda: TransformedTargetRegressor(make_pipeline(halves, Ridge()), func=np.log, inverse_func=np.exp).fit(
            x, np.exp(score)
        ),
    )
    yield (
        "table-power-target",
        lambda: make_pipeline(
            StandardScaler(), TransformedTargetRegressor(Ridge(), transformer=PowerTransformer())
        ).fit(x, score),
    )
    search = make_pipeline(StandardScaler(), Ridge())
    yield "table-search", lambda: GridSearchCV(search, {"ridge__alpha": [0.1, 1.0]}).fit(x, score)
    yield "table-random-search", lambda: RandomizedSearchCV(Ridge(), {"alpha": [0.1, 1.0]}, n_iter=2).fit(x, score)
    yield "table-gaps-marked", lambda: make_pipeline(marked, LogisticRegression()).fit(gaps, two)
    yield "table-splines", lambda: make_pipeline(SplineTransformer(), Ridge()).fit(x, score)
    yield "table-nystroem", lambda: make_pipeline(Nystroem(n_components=10), LogisticRegression()).fit(x, two)


def _decisions() -> Iterator[tuple[str, Fit]]:
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.ensemble import RandomForestClassifier, StackingClassifier, VotingRegressor
    from sklearn.linear_model import LogisticRegression, Ridge, SGDClassifier
    from sklearn.model_selection import FixedThresholdClassifier, TunedThresholdClassifierCV
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import Normalizer, StandardScaler
    from sklearn.svm import SVC, LinearSVC

    x, two, three, score = _rows()
    words = np.array(["low", "middle", "high"])
    forest = RandomForestClassifier(5, random_state=0)
    members = [("forest", forest), ("machine", make_pipeline(StandardScaler(), SVC()))]
    lines = [("forest", forest), ("machine", make_pipeline(StandardScaler(), LinearSVC()))]
    pair = [("a", make_pipeline(StandardScaler(), Ridge())), ("b", KNeighborsRegressor())]
    yield "decision-nearest-weighed", lambda: KNeighborsClassifier(weights="distance").fit(x, words[three])
    yield "decision-mean-weighed", lambda: KNeighborsRegressor(weights="distance", p=1).fit(x, score)
    yield "decision-threshold-fixed", lambda: FixedThresholdClassifier(LogisticRegression(), threshold=0.3).fit(x, two)
    yield "decision-threshold-tuned", lambda: TunedThresholdClassifierCV(LogisticRegression()).fit(x, words[two])
    yield "decision-stack-mixed", lambda: StackingClassifier(members, passthrough=True, cv=2).fit(x, two)
    yield "decision-stack-of-lines", lambda: StackingClassifier(lines, cv=2).fit(x, two)
    yield "decision-stack-three", lambda: StackingClassifier(members, cv=2).fit(x, three)
    yield "decision-vote-of-pipelines", lambda: VotingRegressor(pair).fit(x, score)
    yield (
        "decision-calibrated",
        lambda: make_pipeline(StandardScaler(), CalibratedClassifierCV(forest, method="isotonic", cv=3)).fit(x, two),
    )
    yield "decision-many-labels", lambda: OneVsRestClassifier(LogisticRegression()).fit(x, np.c_[two, 1 - two, two])
    yield "decision-normal", lambda: make_pipeline(Normalizer(), SGDClassifier(loss="log_loss")).fit(x, three)


def _texts() -> Iterator[tuple[str, Fit]]:
    from sklearn.compose import ColumnTransformer
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfVectorizer
    from sklearn.linear_model import LogisticRegression, SGDClassifier
    from sklearn.pipeline import FeatureUnion, make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    x, two, three, _ = _rows()
    texts = np.array(["good movie", "bad film", "great fun", "awful plot", "nice acting", "terrible mess"])[
        three * 2 + two
    ]
    mixed = np.empty((200, 3), object)
    mixed[:, 0], mixed[:, 1], mixed[:, 2] = x[:, 0], np.array(["red", "green", "blue"])[three], texts
    table = ColumnTransformer(
        [("n", StandardScaler(), [0]), ("c", OneHotEncoder(handle_unknown="ignore"), [1]), ("t", TfidfVectorizer(), 2)]
    )
    letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 3))
    yield "text-in-an-array", lambda: make_pipeline(table, LogisticRegression()).fit(mixed, two)
    pairs = TfidfVectorizer(stop_words="english", ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b")
    both = FeatureUnion([("words", TfidfVectorizer()), ("pairs", TfidfVectorizer(ngram_range=(2, 2)))])
    yield "text-pairs-without-stops", lambda: make_pipeline(pairs, LogisticRegression()).fit(texts, two)
    yield "text-union", lambda: make_pipeline(both, LogisticRegression()).fit(texts, two)
    yield "text-letters", lambda: make_pipeline(letters, TruncatedSVD(3), LogisticRegression()).fit(texts, two)
    yield "text-hashed", lambda: make_pipeline(HashingVectorizer(n_features=64), SGDClassifier()).fit(texts, two)
