"""Estimators made of estimators of any kind: each against scikit-learn itself."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.cross_decomposition import CCA
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.decomposition import FactorAnalysis, FastICA, SparsePCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.dummy import DummyRegressor
from sklearn.ensemble import (
    AdaBoostClassifier,
    BaggingClassifier,
    BaggingRegressor,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    StackingClassifier,
    StackingRegressor,
    VotingClassifier,
    VotingRegressor,
)
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.feature_selection import SequentialFeatureSelector
from sklearn.frozen import FrozenEstimator
from sklearn.kernel_approximation import AdditiveChi2Sampler, Nystroem, RBFSampler, SkewedChi2Sampler
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LinearRegression, LogisticRegression, Perceptron, Ridge
from sklearn.model_selection import FixedThresholdClassifier, GridSearchCV, TunedThresholdClassifierCV
from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier
from sklearn.multioutput import ClassifierChain, MultiOutputClassifier, MultiOutputRegressor
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import KBinsDiscretizer, MinMaxScaler, OneHotEncoder, PowerTransformer, StandardScaler
from sklearn.semi_supervised import SelfTrainingClassifier
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier

from converters.sklearn_runner import SklearnRunner
from converters.sklearn_steps import everything

pytestmark = [pytest.mark.sklearn, pytest.mark.filterwarnings("ignore")]

IRIS, DIABETES = load_iris(), load_diabetes()
FLOWERS, PEOPLE = IRIS.data.astype(np.float32), DIABETES.data.astype(np.float32)
NAMES = np.array(["setosa", "versicolor", "virginica"])[IRIS.target]
LARGE = (IRIS.data[:, 2] > 4).astype(int)
CANCER, MALIGN = load_breast_cancer(return_X_y=True)
BOTH = np.c_[DIABETES.target, -DIABETES.target[::-1]]
"""Two targets."""


def scaled(estimator):
    return make_pipeline(StandardScaler(), estimator)


def label(classes) -> tuple[str, tuple[str, ...], str]:
    return ("label", ("batch",), "string" if classes.dtype.kind == "U" else "int64")


@pytest.mark.parametrize("target", [NAMES, LARGE], ids=["three", "two"])
@pytest.mark.parametrize("method", ["sigmoid", "isotonic", "temperature"])
@pytest.mark.parametrize(
    "inner",
    [
        scaled(LogisticRegression()),
        scaled(LinearSVC()),
        scaled(SVC()),
        GaussianNB(),
        RandomForestClassifier(5, max_depth=3, random_state=0),
        HistGradientBoostingClassifier(max_iter=3),
        BaggingClassifier(LogisticRegression(max_iter=1000), n_estimators=2, random_state=0),
        GridSearchCV(scaled(LogisticRegression()), {"logisticregression__C": [0.1, 1]}, cv=2),
    ],
    ids=["pipeline", "svc", "kernel", "bayes", "forest", "boosted", "bag", "search"],
)
def test_a_classifier_is_calibrated_as_scikit_learn_does(same, inner, method, target):
    estimator = CalibratedClassifierCV(inner, method=method, cv=2).fit(IRIS.data, target)
    classes = len(np.unique(target))
    same(estimator, {"X": FLOWERS[::3]}, [label(target), ("probabilities", ("batch", classes))], atol=1e-4)


def test_a_classifier_that_never_saw_a_class_is_calibrated_for_the_others(same):
    rows = np.r_[0:60, 100:103]
    estimator = CalibratedClassifierCV(scaled(LogisticRegression()), cv=[(rows[:60], rows[60:]), (rows, rows)])
    estimator.fit(IRIS.data, IRIS.target)
    assert [len(each.estimator.classes_) for each in estimator.calibrated_classifiers_] == [2, 3]
    same(estimator, {"X": FLOWERS}, [label(IRIS.target), ("probabilities", ("batch", 3))], atol=1e-4)


def test_a_calibrated_classifier_stands_in_others(same):
    inner = CalibratedClassifierCV(scaled(LinearSVC()), cv=2)
    others = VotingClassifier([("a", inner), ("b", GaussianNB())], voting="soft", weights=[2, 1])
    decided = FixedThresholdClassifier(CalibratedClassifierCV(scaled(LinearSVC()), cv=2), threshold=0.8)
    hard = VotingClassifier([("a", decided), ("b", GaussianNB())]).fit(IRIS.data, LARGE)
    same(hard, {"X": FLOWERS}, [label(LARGE)])
    for estimator in (others, OneVsRestClassifier(inner), make_pipeline(StandardScaler(), inner)):
        fitted = estimator.fit(IRIS.data, NAMES)
        same(fitted, {"X": FLOWERS}, [label(NAMES), ("probabilities", ("batch", 3))], atol=1e-4)


def test_gaps_go_the_way_of_the_trees_inside(same):
    estimator = CalibratedClassifierCV(DecisionTreeClassifier(max_depth=4, random_state=0), cv=2).fit(CANCER, MALIGN)
    rows = CANCER.astype(np.float32)[:60].copy()
    rows[np.arange(60), np.arange(60) % 30] = np.nan
    same(estimator, {"X": rows}, [label(MALIGN), ("probabilities", ("batch", 2))])


@pytest.mark.parametrize("target", [NAMES, LARGE], ids=["three", "two"])
@pytest.mark.parametrize(
    "inner",
    [scaled(LogisticRegression()), scaled(LinearSVC()), scaled(SVC()), GaussianNB(), Perceptron()],
    ids=["pipeline", "svc", "kernel", "bayes", "perceptron"],
)
@pytest.mark.parametrize("wrap", [OneVsRestClassifier, OneVsOneClassifier])
def test_two_classes_at_a_time_are_told_apart_by_any_classifier(same, wrap, inner, target):
    estimator = wrap(inner).fit(IRIS.data, target)
    classes = len(np.unique(target))
    shares = hasattr(estimator, "predict_proba")
    scores = ("probabilities", ("batch", classes)) if shares else ("scores", ("batch", 1 if classes == 2 else classes))
    same(estimator, {"X": FLOWERS}, [label(target), scores], atol=1e-3)


def test_of_classes_that_are_equally_sure_the_first_is_taken(same):
    # Rows of the last two kinds stand there twice, once for each of two classes.
    rows = np.concatenate([IRIS.data[:50], np.repeat(IRIS.data[50:], 2, axis=0)])
    classes = np.array(["a"] * 50 + ["b", "c"] * 100)
    estimator = OneVsRestClassifier(DecisionTreeClassifier(max_depth=2, random_state=0)).fit(rows, classes)
    sure = np.stack([member.predict_proba(FLOWERS)[:, 1] for member in estimator.estimators_], axis=1)
    assert (sure[:, 1] == sure[:, 2]).all() and set(estimator.predict(FLOWERS)) == {"a", "b"}
    same(estimator, {"X": FLOWERS}, [label(classes), ("probabilities", ("batch", 3))])


def test_labels_of_which_a_row_may_have_several_are_told_one_by_one(same):
    several = np.c_[IRIS.target == 0, IRIS.data[:, 1] > 3, np.zeros(150)].astype(int)
    estimator = OneVsRestClassifier(scaled(LogisticRegression())).fit(IRIS.data, several)
    same(estimator, {"X": FLOWERS}, [("label", ("batch", 3), "int64"), ("probabilities", ("batch", 3))])


@pytest.mark.parametrize(
    "inner",
    [scaled(LogisticRegression()), scaled(SVC()), Perceptron(), scaled(LinearSVC())],
    ids=["pipeline", "kernel", "perceptron", "svc"],
)
def test_members_of_a_bag_vote_where_they_have_no_probabilities(same, inner):
    for features in (1.0, 3):
        bag = BaggingClassifier(inner, n_estimators=3, max_features=features, random_state=0).fit(IRIS.data, NAMES)
        same(bag, {"X": FLOWERS}, [label(NAMES), ("probabilities", ("batch", 3))])


def test_a_member_of_a_bag_may_not_have_met_every_class(same):
    rare = np.where(np.arange(150) == 149, 2, IRIS.target.clip(0, 1))
    bag = BaggingClassifier(KNeighborsClassifier(3), n_estimators=4, max_samples=0.3, random_state=0)
    bag.fit(IRIS.data, rare)
    assert any(len(member.classes_) == 2 for member in bag.estimators_)
    same(bag, {"X": FLOWERS}, [label(rare), ("probabilities", ("batch", 3))])


def test_what_members_of_any_kind_say_is_counted_with_their_weights(same):
    members = [("a", scaled(SVC())), ("b", GaussianNB()), ("c", Perceptron())]
    hard = VotingClassifier(members, weights=[1, 2, 2.5]).fit(IRIS.data, NAMES)
    same(hard, {"X": FLOWERS}, [label(NAMES)])
    lines = VotingRegressor([("a", LinearRegression()), ("b", Ridge())], weights=(1, 3)).fit(PEOPLE, DIABETES.target)
    same(lines, {"X": PEOPLE}, [("prediction", ("batch", 1))], atol=1e-3)


def test_two_classes_are_told_apart_by_a_discriminant_with_its_own_probability(same):
    for solver in ("svd", "lsqr", "eigen"):
        estimator = LinearDiscriminantAnalysis(solver=solver).fit(IRIS.data, LARGE)
        same(estimator, {"X": FLOWERS}, [label(LARGE), ("probabilities", ("batch", 2))])


def test_what_is_frozen_or_trained_itself_is_what_it_holds(same):
    inner = scaled(LogisticRegression()).fit(IRIS.data, NAMES)
    outputs = [label(NAMES), ("probabilities", ("batch", 3))]
    same(FrozenEstimator(inner), {"X": FLOWERS}, outputs)
    frozen = FrozenEstimator(StandardScaler().fit(IRIS.data))
    same(make_pipeline(frozen, LogisticRegression()).fit(IRIS.data, NAMES), {"X": FLOWERS}, outputs)
    marked = np.where(np.arange(150) % 3 == 0, -1, IRIS.target)
    trained = SelfTrainingClassifier(scaled(LogisticRegression())).fit(IRIS.data, marked)
    same(trained, {"X": FLOWERS}, [label(IRIS.target), ("probabilities", ("batch", 3))])


def test_a_tuned_threshold_over_a_fitted_classifier_is_a_model():
    inner = scaled(LogisticRegression()).fit(IRIS.data, LARGE)
    tuned = TunedThresholdClassifierCV(inner, cv="prefit", refit=False).fit(IRIS.data, LARGE)
    assert SklearnRunner(tuned).inputs[0].shape[1] == 4


def test_classes_that_are_true_and_false_are_numbers_to_adaboost(same):
    estimator = AdaBoostClassifier(n_estimators=3).fit(IRIS.data, LARGE.astype(bool))
    same(estimator, {"X": FLOWERS}, [label(LARGE), ("probabilities", ("batch", 2))])


@pytest.mark.parametrize(
    "transformer",
    [
        KMeans(3, n_init=1, random_state=0),
        MiniBatchKMeans(3, n_init=1, random_state=0),
        LinearDiscriminantAnalysis(n_components=2),
        LinearDiscriminantAnalysis(solver="eigen"),
        FastICA(3, max_iter=1000, random_state=0),
        FactorAnalysis(2),
        SparsePCA(2, random_state=0),
        RBFSampler(n_components=20, random_state=0),
        make_pipeline(MinMaxScaler(clip=True), SkewedChi2Sampler(n_components=10, random_state=0)),
        make_pipeline(MinMaxScaler(clip=True), AdditiveChi2Sampler(sample_steps=3)),
        Nystroem(n_components=12, random_state=0),
        SequentialFeatureSelector(LogisticRegression(max_iter=1000), n_features_to_select=2, cv=2),
        Nystroem(kernel="poly", degree=2, n_components=6, random_state=0),
        FeatureUnion([("a", LinearDiscriminantAnalysis(n_components=1)), ("b", KMeans(2, n_init=1, random_state=0))]),
        ColumnTransformer([("k", KBinsDiscretizer(3), [0, 1]), ("p", PowerTransformer(), [2])]),
        ColumnTransformer([("k", make_pipeline(StandardScaler(), KMeans(2, n_init=1, random_state=0)), [0, 3])]),
    ],
    ids=lambda transformer: type(transformer).__name__,
)
def test_a_step_that_transforms_is_written_out_before_a_classifier(same, transformer):
    estimator = make_pipeline(transformer, LogisticRegression(max_iter=1000)).fit(IRIS.data, NAMES)
    same(estimator, {"X": FLOWERS}, [label(NAMES), ("probabilities", ("batch", 3))], atol=1e-4)


@pytest.mark.parametrize(
    "regressor",
    [
        MLPRegressor(hidden_layer_sizes=(6, 5), max_iter=50, random_state=0),
        BaggingRegressor(LinearRegression(), n_estimators=3, max_features=5, random_state=0),
        BaggingRegressor(make_pipeline(StandardScaler(), Ridge()), n_estimators=2, random_state=0),
        KernelRidge(kernel="rbf", gamma=2),
        KernelRidge(kernel="poly"),
        CCA(),
        DummyRegressor(),
    ],
    ids=["perceptron", "bag", "pipelines", "rbf", "poly", "cca", "dummy"],
)
def test_a_regressor_of_two_targets_gives_two_numbers_a_row(same, regressor):
    same(regressor.fit(PEOPLE, BOTH), {"X": PEOPLE[:90]}, [("prediction", ("batch", 2))], atol=2e-3)


def test_a_gap_is_looked_for_in_every_column():
    trees = BaggingClassifier(LogisticRegression(max_iter=2000), n_estimators=1, max_features=2, random_state=0)
    runner = SklearnRunner(trees.fit(IRIS.data, NAMES))
    unused = set(range(4)) - set(trees.estimators_features_[0])
    assert unused and not runner.domains["X"].missing


def _people() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return rows of a word, two numbers and a text, two classes, three classes and a number to tell."""
    rng = np.random.default_rng(0)
    rows = np.empty((200, 4), object)
    rows[:, 0] = rng.choice(["oslo", "rome", "paris"], 200)
    rows[:, 1], rows[:, 2] = rng.integers(18, 80, 200).astype(float), rng.normal(50, 10, 200)
    rows[:, 3] = rng.choice(["a good one", "a bad one", "fine"], 200)
    wealth = rows[:, 2].astype(float)
    two = ((rows[:, 1] > 40) ^ (rows[:, 0] == "oslo")).astype(int)
    return rows, two, np.array(["low", "middle", "high"])[np.digitize(wealth, [45, 55])], np.exp(wealth / 20)


ROWS, TWO, THREE, WEALTH = _people()


def prepared(estimator, *, texts: bool = False):
    columns = [("c", OneHotEncoder(handle_unknown="ignore"), [0]), ("n", StandardScaler(), [1, 2])]
    return make_pipeline(ColumnTransformer([*columns, ("t", TfidfVectorizer(), 3)] if texts else columns), estimator)


@pytest.mark.parametrize(
    ("estimator", "target", "outputs"),
    [
        (CalibratedClassifierCV(prepared(LinearSVC()), cv=2), TWO, [label(TWO), ("probabilities", ("batch", 2))]),
        (
            CalibratedClassifierCV(prepared(LinearSVC(), texts=True), cv=2),
            TWO,
            [label(TWO), ("probabilities", ("batch", 2))],
        ),
        (
            VotingClassifier(
                [("a", prepared(LogisticRegression())), ("b", prepared(RandomForestClassifier(4, random_state=0)))],
                voting="soft",
            ),
            THREE,
            [label(THREE), ("probabilities", ("batch", 3))],
        ),
        (
            StackingClassifier(
                [("a", prepared(LogisticRegression())), ("b", prepared(SVC()))], LogisticRegression(), cv=2
            ),
            THREE,
            [label(THREE), ("probabilities", ("batch", 3))],
        ),
        (OneVsRestClassifier(prepared(LogisticRegression())), THREE, [label(THREE), ("probabilities", ("batch", 3))]),
        (
            FixedThresholdClassifier(prepared(LogisticRegression()), threshold=0.3),
            TWO,
            [label(TWO), ("probabilities", ("batch", 2))],
        ),
        (
            MultiOutputClassifier(prepared(LogisticRegression())),
            np.c_[TWO, 1 - TWO],
            [("label", ("batch", 2), "int64"), *((f"probabilities_{n}", ("batch", 2)) for n in (0, 1))],
        ),
        (
            TransformedTargetRegressor(prepared(Ridge()), func=np.log1p, inverse_func=np.expm1),
            WEALTH,
            [("prediction", ("batch", 1))],
        ),
        (MultiOutputRegressor(prepared(Ridge())), np.c_[WEALTH, -WEALTH], [("prediction", ("batch", 2))]),
        (
            VotingRegressor([("a", prepared(Ridge())), ("b", prepared(LinearRegression()))], weights=[2, 1]),
            WEALTH,
            [("prediction", ("batch", 1))],
        ),
        (
            StackingRegressor([("a", prepared(Ridge())), ("b", prepared(LinearRegression()))], Ridge(), cv=2),
            WEALTH,
            [("prediction", ("batch", 1))],
        ),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "fit") else "",
)
def test_columns_of_words_and_numbers_reach_the_pipelines_inside(same, estimator, target, outputs):
    rows = ROWS if "TfidfVectorizer" in repr(estimator) else ROWS[:, :3]
    runner = SklearnRunner(estimator.fit(rows, target))
    columns = [f"column_{number}" for number in range(rows.shape[1])]
    assert [spec.name for spec in runner.inputs] == columns
    assert runner.inputs[0].dtype == "string" and runner.inputs[1].dtype == "float32"
    feeds = {
        name: rows[:, [number]].astype(str if spec.dtype == "string" else np.float32)
        for number, (name, spec) in enumerate(zip(columns, runner.inputs, strict=True))
    }
    same(estimator, feeds, outputs, atol=1e-3)


def test_texts_reach_the_pipelines_inside(same):
    texts = ROWS[:, 3].astype(str)
    inner = CalibratedClassifierCV(make_pipeline(TfidfVectorizer(), LinearSVC()), cv=2).fit(texts, TWO)
    same(inner, {"text": texts[:, None]}, [label(TWO), ("probabilities", ("batch", 2))])


@pytest.mark.parametrize("wrap", [False, True], ids=["alone", "calibrated"])
def test_named_categories_of_boosted_trees_are_words_and_a_strange_one_is_a_gap(same, wrap):
    estimator = HistGradientBoostingClassifier(categorical_features=[0], max_iter=8, min_samples_leaf=5)
    estimator = CalibratedClassifierCV(estimator, cv=2) if wrap else estimator
    estimator.fit(ROWS[:, :3], TWO)
    runner = SklearnRunner(estimator)
    assert [spec.dtype for spec in runner.inputs] == ["string", "float32", "float32"]
    rows = ROWS[:, :3].copy()
    rows[:20, 0] = "nowhere"
    feeds = {
        spec.name: rows[:, [number]].astype(str if spec.dtype == "string" else np.float32)
        for number, spec in enumerate(runner.inputs)
    }
    same(estimator, feeds, [label(TWO), ("probabilities", ("batch", 2))])


def test_pipelines_stand_in_a_chain_and_transformed_targets_in_others(same):
    both = np.c_[IRIS.target == 0, IRIS.target == 1].astype(int)
    chain = ClassifierChain(scaled(LogisticRegression()), order=[1, 0]).fit(IRIS.data, both)
    same(chain, {"X": FLOWERS}, [("label", ("batch", 2), "int64"), ("probabilities", ("batch", 2))])
    logged = TransformedTargetRegressor(scaled(Ridge()), func=np.log1p, inverse_func=np.expm1)
    numbers = VotingRegressor([("a", logged), ("b", Ridge())]).fit(PEOPLE, DIABETES.target)
    same(numbers, {"X": PEOPLE}, [("prediction", ("batch", 1))], atol=2e-3)


def test_the_last_of_many_members_is_given_its_columns_too(same):
    many = np.array([f"kind {number:02}" for number in range(20)])[np.arange(200) % 20]
    estimator = OneVsRestClassifier(prepared(LogisticRegression())).fit(ROWS[:, :3], many)
    feeds = {f"column_{number}": ROWS[:, [number]].astype(str if number == 0 else np.float32) for number in range(3)}
    same(estimator, feeds, [label(many), ("probabilities", ("batch", 20))])
    assert sum(isinstance(part, ColumnTransformer) for part in everything(estimator)) == 20
    targets = np.repeat(WEALTH[:, None], 18, axis=1) * np.arange(1, 19)
    numbers = MultiOutputRegressor(prepared(Ridge())).fit(ROWS[:, :3], targets)
    same(numbers, feeds, [("prediction", ("batch", 18))], atol=1e-2)
