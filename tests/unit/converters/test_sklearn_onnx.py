from __future__ import annotations

import warnings
from pathlib import Path

import joblib
import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_diabetes, load_iris
from sklearn.ensemble import GradientBoostingClassifier, IsolationForest, RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression, RidgeClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import LabelEncoder, MinMaxScaler, OneHotEncoder, StandardScaler
from sklearn.svm import SVC, LinearSVC

from converters import sklearn_onnx
from converters.sklearn_runner import SklearnRunner, load_estimator
from schemas.descriptor import Format
from schemas.errors import ConversionFailed, ModelFailed

pytestmark = pytest.mark.sklearn

IRIS = load_iris()
NAMES = np.array(["setosa", "versicolor", "virginica"])


class HomeMade(ClassifierMixin, BaseEstimator):
    """An estimator that skl2onnx knows nothing of."""

    def fit(self, X, y):
        self.classes_, self.n_features_in_ = np.unique(y), X.shape[1]
        return self

    def predict(self, X):
        return np.zeros(len(X), int)


def context_of(estimator, tmp_path: Path, make_context, make_spec, outputs, **more):
    runner = SklearnRunner(estimator)
    joblib.dump(estimator, tmp_path / "model.joblib", compress=3)
    return make_context(
        "sklearn_onnx",
        tmp_path / "model.joblib",
        Format.SKLEARN,
        inputs=runner.inputs,
        outputs=[make_spec(*output) for output in outputs],
        **more,
    ), runner


def check(context, runner, run_onnx, feeds, agreement=1.0):
    report = sklearn_onnx.convert(context).report
    fed = {name: array.astype(object) if array.dtype.kind == "U" else array for name, array in feeds.items()}
    got = run_onnx(context, fed)
    wanted = runner.run(feeds)
    assert list(got) == list(wanted) == [item.name for item in report.outputs]
    for name, array in wanted.items():
        assert got[name].shape == array.shape, name
        if name == "label":
            assert (got[name] == array).mean() >= agreement
        else:
            np.testing.assert_allclose(got[name], array, atol=1e-4, rtol=1e-4)
    return report


@pytest.mark.parametrize(
    "estimator",
    [
        LogisticRegression(max_iter=500),
        make_pipeline(StandardScaler(), RandomForestClassifier(5, random_state=0)),
        GradientBoostingClassifier(n_estimators=5, random_state=0),
    ],
    ids=["logistic", "pipeline", "boosting"],
)
def test_a_classifier_gives_labels_and_probabilities(tmp_path, make_context, make_spec, run_onnx, estimator):
    estimator.fit(IRIS.data, IRIS.target)
    outputs = [("label", ("batch",), "int64"), ("probabilities", ("batch", 3))]
    context, runner = context_of(estimator, tmp_path, make_context, make_spec, outputs)
    report = check(context, runner, run_onnx, {"X": IRIS.data.astype(np.float32)}, agreement=0.99)
    assert report.opset == 17
    assert report.inputs[0].shape == ("batch", 4)
    assert report.outputs[0].shape == ("batch",)
    assert report.outputs[1].shape == ("batch", 3)


@pytest.mark.parametrize("around", ["dict", "tuple", "encoder"])
def test_the_one_estimator_in_a_dict_or_tuple_is_converted(tmp_path, make_context, make_spec, run_onnx, around):
    estimator = LogisticRegression(max_iter=500).fit(IRIS.data, IRIS.target)
    runner = SklearnRunner(estimator)
    held = {
        "dict": {"features": ["a", "b"], "model": estimator, "kind": LogisticRegression},
        "tuple": ("v1", {"models": [estimator]}),
        "encoder": {"model": estimator, "names": LabelEncoder().fit(NAMES)},
    }[around]
    joblib.dump(held, tmp_path / "model.joblib")
    outputs = [make_spec("label", ("batch",), "int64"), make_spec("probabilities", ("batch", 3))]
    context = make_context(
        "sklearn_onnx", tmp_path / "model.joblib", Format.SKLEARN, inputs=runner.inputs, outputs=outputs
    )
    check(context, runner, run_onnx, {"X": IRIS.data.astype(np.float32)})


def test_two_estimators_in_a_dict_are_refused_as_the_dict(tmp_path):
    joblib.dump({"model": LogisticRegression(), "scaler": [StandardScaler()]}, tmp_path / "model.joblib")
    with pytest.raises(ModelFailed, match="holds a dict, not"):
        load_estimator(tmp_path / "model.joblib")


def test_a_finished_search_becomes_its_best_estimator(tmp_path, make_context, make_spec, run_onnx):
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    estimator = GridSearchCV(pipeline, {"logisticregression__C": [0.1, 1]}, cv=2).fit(IRIS.data, IRIS.target)
    outputs = [("label", ("batch",), "int64"), ("probabilities", ("batch", 3))]
    context, runner = context_of(estimator, tmp_path, make_context, make_spec, outputs)
    check(context, runner, run_onnx, {"X": IRIS.data.astype(np.float32)})


def test_labels_may_be_strings(tmp_path, make_context, make_spec, run_onnx):
    estimator = LogisticRegression(max_iter=500).fit(IRIS.data, NAMES[IRIS.target])
    outputs = [("label", ("batch",), "string"), ("probabilities", ("batch", 3))]
    context, runner = context_of(estimator, tmp_path, make_context, make_spec, outputs)
    report = check(context, runner, run_onnx, {"X": IRIS.data.astype(np.float32)})
    assert report.outputs[0].dtype == "string"


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("estimator", [LinearSVC(), RidgeClassifier(), SVC()], ids=["linear-svc", "ridge", "svc"])
def test_a_classifier_without_probabilities_gives_its_decision_function(
    tmp_path, make_context, make_spec, run_onnx, estimator, classes
):
    keep = IRIS.target < classes
    estimator.fit(IRIS.data[keep], IRIS.target[keep])
    width = 1 if classes == 2 else 3
    outputs = [("label", ("batch",), "int64"), ("scores", ("batch", width))]
    context, runner = context_of(estimator, tmp_path, make_context, make_spec, outputs)
    check(context, runner, run_onnx, {"X": IRIS.data[keep].astype(np.float32)})


@pytest.mark.parametrize("estimator", [LinearRegression(), RandomForestRegressor(5, random_state=0)])
def test_a_regressor_gives_one_prediction_a_row(tmp_path, make_context, make_spec, run_onnx, estimator):
    data = load_diabetes()
    estimator.fit(data.data, data.target)
    context, runner = context_of(estimator, tmp_path, make_context, make_spec, [("prediction", ("batch", 1))])
    check(context, runner, run_onnx, {"X": data.data[:50].astype(np.float32)})


def test_a_transformer_gives_what_it_transforms(tmp_path, make_context, make_spec, run_onnx):
    estimator = make_pipeline(StandardScaler(), MinMaxScaler()).fit(IRIS.data)
    context, runner = context_of(estimator, tmp_path, make_context, make_spec, [("transformed", ("batch", 4))])
    check(context, runner, run_onnx, {"X": IRIS.data.astype(np.float32)})


def test_an_outlier_detector_gives_labels_and_scores(tmp_path, make_context, make_spec, run_onnx):
    estimator = IsolationForest(n_estimators=10, random_state=0).fit(IRIS.data)
    outputs = [("label", ("batch",), "int64"), ("scores", ("batch", 1))]
    context, runner = context_of(estimator, tmp_path, make_context, make_spec, outputs)
    check(context, runner, run_onnx, {"X": IRIS.data.astype(np.float32)}, agreement=0.97)


def test_a_clusterer_gives_labels_alone(tmp_path, make_context, make_spec, run_onnx):
    estimator = KMeans(3, n_init=1, random_state=0).fit(IRIS.data)
    context, runner = context_of(estimator, tmp_path, make_context, make_spec, [("label", ("batch",), "int64")])
    check(context, runner, run_onnx, {"X": IRIS.data.astype(np.float32)})


def test_columns_of_strings_and_numbers_keep_their_names(tmp_path, make_context, make_spec, run_onnx):
    rng = np.random.default_rng(0)
    table = np.empty((60, 3), object)
    table[:, 0] = rng.choice(["red", "green", "blue"], 60)
    table[:, 1] = rng.random(60)
    table[:, 2] = rng.random(60) * 10
    answer = (table[:, 0] == "red").astype(int)
    columns = ColumnTransformer([("numbers", StandardScaler(), [2, 1]), ("colour", OneHotEncoder(), [0])])
    estimator = make_pipeline(columns, LogisticRegression()).fit(table, answer)
    outputs = [("label", ("batch",), "int64"), ("probabilities", ("batch", 2))]
    context, runner = context_of(estimator, tmp_path, make_context, make_spec, outputs)
    assert [item.dtype for item in runner.inputs] == ["string", "float32", "float32"]

    feeds = {
        "column_0": table[:, :1].astype(np.str_),
        "column_1": table[:, 1:2].astype(np.float32),
        "column_2": table[:, 2:].astype(np.float32),
    }
    report = check(context, runner, run_onnx, feeds)
    assert [item.name for item in report.inputs] == ["column_0", "column_1", "column_2"]


def test_a_pipeline_fitted_on_named_columns_takes_one_matrix(tmp_path, make_context, make_spec, run_onnx):
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(IRIS.data, columns=["a", "b", "c", "d"])
    columns = ColumnTransformer([("one", StandardScaler(), ["d", "a"]), ("two", MinMaxScaler(), ["b"])])
    estimator = make_pipeline(columns, LogisticRegression(max_iter=500)).fit(table, IRIS.target)
    outputs = [("label", ("batch",), "int64"), ("probabilities", ("batch", 3))]
    context, runner = context_of(estimator, tmp_path, make_context, make_spec, outputs)
    check(context, runner, run_onnx, {"X": IRIS.data.astype(np.float32)})


def test_an_estimator_that_skl2onnx_does_not_know_is_named(tmp_path, make_context, make_spec):
    estimator = HomeMade().fit(IRIS.data, IRIS.target)
    context, _ = context_of(estimator, tmp_path, make_context, make_spec, [("label", ("batch",), "int64")])
    with pytest.raises(ConversionFailed, match="no converter for HomeMade"):
        sklearn_onnx.convert(context)


def test_another_version_of_scikit_learn_is_noted(tmp_path, make_context, make_spec):
    estimator = LinearRegression().fit(IRIS.data, IRIS.target)
    outputs = [("prediction", ("batch", 1))]
    more = {"descriptor": {"framework_version": "1.2.0"}}
    context, _ = context_of(estimator, tmp_path, make_context, make_spec, outputs, **more)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = sklearn_onnx.convert(context).report
    assert "saved by scikit-learn 1.2.0" in report.notes[0]
