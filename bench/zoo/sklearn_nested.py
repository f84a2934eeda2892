"""The scikit-learn part of the zoo, continued: estimators made of estimators, and transformers few converters know."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from sklearn_combinations import _rows

Fit = Callable[[], Any]


def nested() -> Iterator[tuple[str, Fit]]:
    """Yield name and training of each."""
    yield from _calibrated()
    yield from _together()
    yield from _around_columns()
    yield from _transformed()


def _fit(estimator: Any, table: Any, target: Any) -> Fit:
    return lambda: estimator.fit(table, target)


def _calibrated() -> Iterator[tuple[str, Fit]]:
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.frozen import FrozenEstimator
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import GaussianNB
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC, LinearSVC

    x, two, three, _ = _rows()
    line = make_pipeline(StandardScaler(), LogisticRegression())
    for method in ("sigmoid", "isotonic", "temperature"):
        for name, inner in (
            ("line", line), ("margin", LinearSVC()), ("kernel", make_pipeline(StandardScaler(), SVC())),
            ("bayes", GaussianNB()), ("boosted", HistGradientBoostingClassifier(max_iter=5)),
        ):  # fmt: skip
            yield f"calibrated-{method}-{name}", _fit(CalibratedClassifierCV(inner, method=method, cv=2), x, three)
    frozen = FrozenEstimator(make_pipeline(StandardScaler(), LogisticRegression()).fit(x, two))
    yield "calibrated-frozen", _fit(CalibratedClassifierCV(frozen), x, two)


def _together() -> Iterator[tuple[str, Fit]]:
    from sklearn.ensemble import BaggingClassifier, BaggingRegressor, VotingClassifier, VotingRegressor
    from sklearn.linear_model import LinearRegression, LogisticRegression, Perceptron, Ridge
    from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier
    from sklearn.naive_bayes import GaussianNB
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.semi_supervised import SelfTrainingClassifier
    from sklearn.svm import SVC

    x, two, three, score = _rows()
    words, marked = np.array(["low", "middle", "high"])[three], np.where(np.arange(200) % 3 == 0, -1, three)
    machine = make_pipeline(StandardScaler(), SVC())
    members = [("a", make_pipeline(StandardScaler(), LogisticRegression())), ("b", GaussianNB())]
    yield "together-rest", _fit(OneVsRestClassifier(machine), x, words)
    yield "together-pairs", _fit(OneVsOneClassifier(machine), x, words)
    yield "together-pairs-of-two", _fit(OneVsOneClassifier(Perceptron()), x, two)
    yield "together-bag-votes", _fit(BaggingClassifier(machine, n_estimators=3, max_features=3), x, words)
    yield "together-bag-two-targets", _fit(BaggingRegressor(Ridge(), n_estimators=3), x, np.c_[score, -score])
    yield "together-weighed", _fit(VotingClassifier(members, voting="soft", weights=[2, 1]), x, words)
    yield "together-hard", _fit(VotingClassifier([*members, ("c", machine)], weights=[1, 2, 1]), x, words)
    lines = [("a", LinearRegression()), ("b", Ridge())]
    yield "together-weighed-numbers", _fit(VotingRegressor(lines, weights=[1, 3]), x, score)
    yield "together-self-trained", _fit(SelfTrainingClassifier(members[0][1]), x, marked)


def _around_columns() -> Iterator[tuple[str, Fit]]:
    """Estimators around pipelines that begin with columns of words, numbers and texts."""
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
    from sklearn.ensemble import StackingClassifier, StackingRegressor, VotingClassifier
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.model_selection import TunedThresholdClassifierCV
    from sklearn.multioutput import MultiOutputClassifier, MultiOutputRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler
    from sklearn.svm import LinearSVC

    x, two, three, score = _rows()
    rows = np.empty((200, 4), object)
    rows[:, 0], rows[:, 3] = np.array(["red", "green", "blue"])[three], np.array(["a bad one", "a good one"])[two]
    rows[:, 1], rows[:, 2] = x[:, 1], x[:, 2]

    def around(last: Any) -> Any:
        words, numbers = OneHotEncoder(handle_unknown="ignore"), StandardScaler()
        columns = [("c", words, [0]), ("n", numbers, [1, 2]), ("t", TfidfVectorizer(), 3)]
        return make_pipeline(ColumnTransformer(columns), last)

    line, number = around(LogisticRegression()), around(Ridge())
    members, lines = [("a", line), ("b", around(LinearSVC()))], [("a", number), ("b", around(Ridge(10)))]
    target = TransformedTargetRegressor(number, func=np.log, inverse_func=np.exp)
    yield "columns-calibrated", _fit(CalibratedClassifierCV(around(LinearSVC()), cv=2), rows, three)
    yield "columns-threshold", _fit(TunedThresholdClassifierCV(line, cv=2), rows, two)
    yield "columns-vote", _fit(VotingClassifier([("a", line), ("b", line)], voting="soft"), rows, three)
    yield "columns-stack", _fit(StackingClassifier(members, cv=2), rows, three)
    yield "columns-stacked-numbers", _fit(StackingRegressor(lines, cv=2), rows, score)
    yield "columns-log-target", _fit(target, rows, np.exp(score))
    yield "columns-two-labels", _fit(MultiOutputClassifier(line), rows, np.c_[two, 1 - two])
    yield "columns-two-targets", _fit(MultiOutputRegressor(number), rows, np.c_[score, -score])
    yield (
        "texts-calibrated",
        _fit(CalibratedClassifierCV(make_pipeline(TfidfVectorizer(), LinearSVC()), cv=2), rows[:, 3], two),
    )


def _transformed() -> Iterator[tuple[str, Fit]]:
    from sklearn.cluster import KMeans
    from sklearn.cross_decomposition import CCA
    from sklearn.decomposition import FactorAnalysis, FastICA, SparsePCA
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.kernel_approximation import AdditiveChi2Sampler, RBFSampler, SkewedChi2Sampler
    from sklearn.kernel_ridge import KernelRidge
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler

    x, two, three, score = _rows()
    for name, step in (
        ("distances", KMeans(4, n_init=1)), ("discriminants", LinearDiscriminantAnalysis()),
        ("independent", FastICA(3, max_iter=1000)), ("factors", FactorAnalysis(2)), ("sparse", SparsePCA(3)),
        ("fourier", RBFSampler(n_components=32)),
        ("skewed", make_pipeline(MinMaxScaler(clip=True), SkewedChi2Sampler(n_components=16))),
        ("additive", make_pipeline(MinMaxScaler(clip=True), AdditiveChi2Sampler())),
    ):  # fmt: skip
        yield f"transformed-{name}", _fit(make_pipeline(step, LogisticRegression()), x, three)
    yield "discriminant-of-two", _fit(LinearDiscriminantAnalysis(), x, two)
    yield "kernel-ridge", _fit(KernelRidge(kernel="rbf"), x, score)
    yield "correlated-targets", _fit(CCA(), x, np.c_[score, x[:, 1]])
    yield "layers-two-targets", _fit(MLPRegressor(hidden_layer_sizes=(8,), max_iter=100), x, np.c_[score, -score])
