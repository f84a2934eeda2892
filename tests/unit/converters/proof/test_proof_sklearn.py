"""Estimators that once failed, or passed without being tried, each on its whole way to parity."""

from __future__ import annotations

import joblib
import numpy as np
import pytest
from sklearn.cluster import DBSCAN
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_iris
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from sklearn.ensemble import (
    BaggingClassifier,
    HistGradientBoostingClassifier,
    IsolationForest,
    RandomForestClassifier,
    VotingClassifier,
)
from sklearn.feature_extraction import DictVectorizer
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.impute import KNNImputer, SimpleImputer
from sklearn.linear_model import LogisticRegression, SGDOneClassSVM
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import CategoricalNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import KBinsDiscretizer, OneHotEncoder, PowerTransformer, StandardScaler
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier

from converters.sklearn_runner import SklearnRunner
from schemas.descriptor import Format
from schemas.errors import ModelFailed, Unsupported

pytestmark = pytest.mark.sklearn

X, Y = load_iris(return_X_y=True)
GAPS = np.where(np.random.default_rng(0).random(X.shape) < 0.2, np.nan, X)
CODES = np.random.default_rng(0).integers(5, 9, (150, 2))
WORDS = np.random.default_rng(0).choice(["red", "green", "blue"], (150, 2)).astype(object)
TEXTS = ["The cat sat.", "a dog ran fast", "the dog sat", "cats and dogs"] * 5
MIXED = np.concatenate([WORDS, X[:, :1].astype(object)], axis=1)


def way_of(estimator, tell, tmp_path):
    """Return the story and the parity report of ``estimator``, converted."""
    from converters.sklearn_onnx import convert

    joblib.dump(estimator, tmp_path / "m")
    story = tell(tmp_path / "m", Format.SKLEARN)
    story.probe()
    story.reference()
    context = story.context("sklearn_onnx", {}, model=story.model, reference=story.reference_folder)
    return story, story.parity(context.out / convert(context).outputs["model"])


@pytest.mark.parametrize(
    "estimator",
    [
        make_pipeline(StandardScaler(), LinearSVC()).fit(X[:100], np.array(["bad", "good"])[Y[:100]]),
        QuadraticDiscriminantAnalysis().fit(X, Y),
        SGDOneClassSVM(random_state=0).fit(X),
        VotingClassifier([("a", LogisticRegression(max_iter=500)), ("b", DecisionTreeClassifier())]).fit(X, Y),
        make_pipeline(KBinsDiscretizer(4, quantile_method="averaged_inverted_cdf"), LogisticRegression()).fit(X, Y),
        make_pipeline(KNNImputer(), LogisticRegression(max_iter=500)).fit(GAPS, Y),
        make_pipeline(OneHotEncoder(), LogisticRegression()).fit(CODES, Y),
        CategoricalNB().fit(CODES - 5, Y),
        PowerTransformer(method="box-cox").fit(X),
    ],
    ids=lambda estimator: type(getattr(estimator, "steps", [("", estimator)])[0][1]).__name__,
)
def test_an_estimator_with_a_quirk_of_its_converter_passes(estimator, tell, tmp_path):
    _, report = way_of(estimator, tell, tmp_path)
    assert report.passed, report.reason
    assert report.batching.holds


@pytest.mark.parametrize(
    "estimator",
    [
        RandomForestClassifier(5, random_state=0).fit(X, Y),
        RandomForestClassifier(5, random_state=0).fit(GAPS, Y),
        BaggingClassifier(n_estimators=3, random_state=0).fit(X, Y),
        IsolationForest(n_estimators=5, random_state=0).fit(X),
        HistGradientBoostingClassifier(max_iter=3).fit(GAPS, Y),
        make_pipeline(SimpleImputer(), StandardScaler(), LogisticRegression()).fit(GAPS, Y),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_a_missing_value_is_answered_as_the_original_answers_it(estimator, tell, tmp_path):
    story, report = way_of(estimator, tell, tmp_path)
    from converters.arrays import load

    assert any(np.isnan(load(file)["X"]).any() for file in story.reference_folder.glob("*.inputs.npz"))
    assert report.passed, report.reason


def test_a_scaler_before_an_estimator_that_refuses_gaps_is_given_none():
    fitted = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, Y)
    assert not SklearnRunner(fitted).domains["X"].missing


@pytest.mark.parametrize("vectoriser", [CountVectorizer(), TfidfVectorizer(ngram_range=(1, 2))])
def test_a_text_pipeline_takes_strings(vectoriser, tell, tmp_path):
    story, report = way_of(make_pipeline(vectoriser, LogisticRegression()).fit(TEXTS, [0, 1, 1, 0] * 5), tell, tmp_path)
    assert [(s.name, s.dtype, s.shape) for s in story.descriptor.inputs] == [("text", "string", ("batch", 1))]
    assert report.passed, report.reason


def test_a_vectoriser_alone_gives_whole_numbers_as_scikit_learn_does(tell, tmp_path):
    story, report = way_of(CountVectorizer().fit(TEXTS), tell, tmp_path)
    assert story.descriptor.outputs[0].dtype == "int64"
    assert report.passed, report.reason


def test_columns_of_texts_words_and_numbers_go_together(tell, tmp_path):
    rows = np.array([[text, "ab"[i % 2], i] for i, text in enumerate(TEXTS)], dtype=object)
    table = ColumnTransformer([("t", TfidfVectorizer(), 0), ("w", OneHotEncoder(), [1]), ("n", StandardScaler(), [2])])
    story, report = way_of(make_pipeline(table, LogisticRegression()).fit(rows, [0, 1, 1, 0] * 5), tell, tmp_path)
    assert [s.dtype for s in story.descriptor.inputs] == ["string", "string", "float32"]
    assert report.passed, report.reason


def test_an_imputer_of_strings_is_left_out_as_no_string_is_missing(tell, tmp_path):
    words = make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore"))
    table = ColumnTransformer([("w", words, [0, 1]), ("n", StandardScaler(), [2])])
    _, report = way_of(make_pipeline(table, LogisticRegression()).fit(MIXED, Y), tell, tmp_path)
    assert report.passed, report.reason


def test_neighbours_are_asked_for_near_their_training_data():
    far = KNeighborsClassifier().fit(X * 1000, Y)
    centre = SklearnRunner(far).domains["X"].centre
    assert centre == pytest.approx(X.mean(0) * 1000)


@pytest.mark.parametrize(
    ("estimator", "error", "said"),
    [
        (LogisticRegression(), ModelFailed, "LogisticRegression in this file is not fitted"),
        (DBSCAN().fit(X), Unsupported, "DBSCAN can neither predict nor transform"),
        (DictVectorizer().fit([{"a": 1}]), Unsupported, "DictVectorizer does not take a table"),
        (
            GridSearchCV(LogisticRegression(max_iter=500), {"C": [1]}, cv=2, refit=False).fit(X, Y),
            ModelFailed,
            "refit=False and holds no model",
        ),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "fit") else None,
)
def test_what_cannot_be_served_is_refused_with_its_own_reason(estimator, error, said, tell, tmp_path):
    joblib.dump(estimator, tmp_path / "m")
    with pytest.raises(error, match=said):
        tell(tmp_path / "m", Format.SKLEARN).probe()
