"""Estimators that skl2onnx has no converter for, or one that does not run: each against scikit-learn itself."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.datasets import load_diabetes, load_iris
from sklearn.ensemble import RandomForestClassifier, StackingClassifier
from sklearn.feature_selection import SelectKBest, f_regression
from sklearn.gaussian_process import GaussianProcessClassifier
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, DotProduct, Matern, WhiteKernel
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from sklearn.model_selection import FixedThresholdClassifier, TunedThresholdClassifierCV
from sklearn.multioutput import ClassifierChain, RegressorChain
from sklearn.neighbors import (
    KNeighborsClassifier,
    KNeighborsRegressor,
    RadiusNeighborsClassifier,
    RadiusNeighborsRegressor,
)
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    PowerTransformer,
    QuantileTransformer,
    RobustScaler,
    SplineTransformer,
    StandardScaler,
)
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier

from converters import onnx_file
from schemas.errors import ConversionFailed

pytestmark = pytest.mark.sklearn

IRIS = load_iris()
DIABETES = load_diabetes()
TWO = np.c_[DIABETES.target > 140, DIABETES.target > 200].astype(int)
FLOWERS = IRIS.data.astype(np.float32)
NAMES = np.array(["setosa", "versicolor", "virginica"])


@pytest.mark.parametrize(
    "kernel",
    [
        None,
        ConstantKernel(50.0) * RBF([1.0, 2.0, 0.5, 1.5]) + WhiteKernel(1e-3),
        Matern(1.3, nu=1.5),
        DotProduct(1.0),
    ],
    ids=["default", "anisotropic", "matern", "dot"],
)
def test_a_gaussian_process_classifier_of_two_classes(same, kernel):
    estimator = GaussianProcessClassifier(kernel, random_state=0).fit(IRIS.data[50:], NAMES[IRIS.target[50:]])
    far = FLOWERS * 1.3 + np.float32(0.17)
    feeds = {"X": np.concatenate([FLOWERS, far])}
    same(estimator, feeds, [("label", ("batch",), "string"), ("probabilities", ("batch", 2))])


def test_a_gaussian_process_classifier_of_three_classes(same):
    estimator = GaussianProcessClassifier(1.0 * RBF(1.0)).fit(IRIS.data, IRIS.target)
    same(estimator, {"X": FLOWERS}, [("label", ("batch",), "int64"), ("probabilities", ("batch", 3))])


@pytest.mark.parametrize("metric", ["euclidean", "manhattan", "minkowski"])
@pytest.mark.parametrize("weights", ["uniform", "distance"])
def test_a_radius_classifier_votes_as_scikit_learn_does(same, weights, metric):
    estimator = RadiusNeighborsClassifier(0.8, weights=weights, metric=metric, p=3).fit(IRIS.data, NAMES[IRIS.target])
    rows = {"X": np.concatenate([FLOWERS, FLOWERS + np.float32(0.07)])}
    run = same(estimator, rows, [("label", ("batch",), "string"), ("probabilities", ("batch", 3))])
    with pytest.raises(onnx_file.onnxruntime_errors(), match="a row has no neighbours within the radius"):
        # scikit-learn refuses a row without neighbours, and an answer would be an invention.
        run({"X": np.full((2, 4), 99, np.float32)})


@pytest.mark.parametrize("label", [1, 7, "most_frequent"])
def test_a_radius_classifier_has_a_label_for_outliers(same, label):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        estimator = RadiusNeighborsClassifier(0.5, outlier_label=label).fit(IRIS.data, IRIS.target)
        rows = {"X": np.concatenate([FLOWERS[::5], FLOWERS[::7] * 3])}
        same(estimator, rows, [("label", ("batch",), "int64"), ("probabilities", ("batch", 3))])


def test_a_radius_classifier_of_several_targets(same):
    estimator = RadiusNeighborsClassifier(0.1, outlier_label=[0, 1]).fit(DIABETES.data, TWO)
    outputs = [("label", ("batch", 2), "int64"), *((f"probabilities_{n}", ("batch", 2)) for n in (0, 1))]
    same(estimator, {"X": DIABETES.data.astype(np.float32)}, outputs)


@pytest.mark.parametrize("weights", ["uniform", "distance"])
def test_a_radius_regressor_gives_nan_where_nobody_is_near(same, weights):
    estimator = RadiusNeighborsRegressor(0.12, weights=weights).fit(DIABETES.data, DIABETES.target)
    rows = DIABETES.data.astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        same(estimator, {"X": np.concatenate([rows, rows + 5])}, [("prediction", ("batch", 1))], atol=1e-3)


def people(rows: int = 300):
    rng = np.random.default_rng(0)
    city = rng.choice(["Rome", "Oslo", "Lima", "Bern", "Cork"], rows, p=[0.5, 0.3, 0.1, 0.06, 0.04])
    size = rng.choice(["small", "medium", "large"], rows)
    table = np.empty((rows, 3), object)
    table[:, 0], table[:, 1], table[:, 2] = city, size, rng.normal(40, 9, rows)
    return table, (city == "Oslo").astype(int)


@pytest.mark.parametrize("drop", [None, "first"])
@pytest.mark.parametrize("unknown", ["infrequent_if_exist", "ignore"])
def test_rare_words_are_one_column(same, unknown, drop):
    table, y = people()
    encoder = OneHotEncoder(min_frequency=40, handle_unknown=unknown, drop=drop)
    columns = ColumnTransformer([("w", encoder, [0, 1]), ("n", StandardScaler(), [2])])
    estimator = make_pipeline(columns, LogisticRegression()).fit(table, y)
    feeds = {f"column_{n}": table[:, n : n + 1] for n in (0, 1)} | {"column_2": table[:, 2:].astype(np.float32)}
    feeds["column_0"][::9] = "Nowhere"
    outputs = [("label", ("batch",), "int64"), ("probabilities", ("batch", 2))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        same(estimator, feeds, outputs)


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("encoder", ["one-hot", "ordinal"])
def test_rare_numbers_are_one_column(same, encoder, gaps):
    rng = np.random.default_rng(0)
    table = np.round(rng.exponential(2.0, (400, 2)))
    if gaps:
        table[rng.random(table.shape) < 0.2] = np.nan
    if encoder == "one-hot":
        made = OneHotEncoder(max_categories=4, handle_unknown="infrequent_if_exist").fit(table)
    else:
        made = OrdinalEncoder(
            max_categories=4, handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-2
        ).fit(table)
    width = made.transform(table[:1]).shape[1]
    rows = np.concatenate([table, [[77, 0.5], [0, -3]]]).astype(np.float32)
    same(made, {"X": rows}, [("transformed", ("batch", width))])


@pytest.mark.parametrize(
    ("member", "passed"),
    [
        (LogisticRegression(), "predict"),
        (LogisticRegression(), "predict_proba"),
        (LogisticRegression(), "predict_log_proba"),
        (DecisionTreeClassifier(max_depth=4, random_state=0), "predict"),
        (DecisionTreeClassifier(max_depth=4, random_state=0), "predict_proba"),
    ],
)
def test_a_chain_of_classifiers_passes_on_what_it_says(same, member, passed):
    chain = ClassifierChain(member, order=[1, 0], chain_method=passed).fit(DIABETES.data, TWO)
    outputs = [("label", ("batch", 2), "int64"), ("probabilities", ("batch", 2))]
    same(chain, {"X": DIABETES.data.astype(np.float32)}, outputs)


def test_a_chain_without_probabilities_gives_its_decisions(same):
    chain = make_pipeline(StandardScaler(), ClassifierChain(RidgeClassifier())).fit(DIABETES.data, TWO)
    outputs = [("label", ("batch", 2), "int64"), ("scores", ("batch", 2))]
    same(chain, {"X": DIABETES.data.astype(np.float32)}, outputs)


def test_a_chain_of_regressors_keeps_the_order_of_its_targets(same):
    targets = np.c_[DIABETES.target, -(DIABETES.target**0.5), DIABETES.data[:, 0]]
    chain = RegressorChain(Ridge(), order=[2, 0, 1]).fit(DIABETES.data, targets)
    same(chain, {"X": DIABETES.data.astype(np.float32)}, [("prediction", ("batch", 3))], atol=1e-3)


@pytest.mark.parametrize(
    "turned",
    [
        {"func": np.log1p, "inverse_func": np.expm1},
        {"func": np.sqrt, "inverse_func": np.square},
        {},
        {"transformer": StandardScaler()},
        {"transformer": StandardScaler(with_mean=False)},
        {"transformer": MinMaxScaler((-1, 2))},
        {"transformer": MaxAbsScaler()},
        {"transformer": RobustScaler(with_scaling=False)},
        {"transformer": PowerTransformer()},
        {"transformer": PowerTransformer("box-cox", standardize=False)},
        {"transformer": make_pipeline(FunctionTransformer(np.log, np.exp), StandardScaler())},
    ],
    ids=lambda turned: str(next(iter(turned.values()), "nothing"))[:40],
)
def test_a_regressor_s_answers_are_turned_back(same, turned):
    x = DIABETES.data.astype(np.float32)
    model = TransformedTargetRegressor(Ridge(0.1), **turned).fit(x, DIABETES.target)
    same(model, {"X": x}, [("prediction", ("batch", 1))], atol=2e-3)


def test_answers_below_zero_are_turned_back_too(same):
    x = DIABETES.data.astype(np.float32)
    targets = np.c_[DIABETES.target - 150, np.exp((DIABETES.target - 150) / 100), DIABETES.target]
    power = PowerTransformer().fit(targets)
    power.lambdas_[:] = 2, 0, 0.5
    model = TransformedTargetRegressor(Ridge(0.1), transformer=power, check_inverse=False).fit(x, targets)
    model.transformer_.lambdas_[:] = 2, 0, 0.5
    model.transformer_._scaler.mean_[:], model.transformer_._scaler.scale_[:] = 0.2, 1.5
    same(model, {"X": x}, [("prediction", ("batch", 3))], atol=2e-3)


def test_a_whole_pipeline_may_stand_behind_a_transformed_target(same):
    table = ColumnTransformer([("numbers", StandardScaler(), [0, 1, 2]), ("rest", "passthrough", [3, 4])])
    x = DIABETES.data[:, :5].astype(np.float32)
    inner = make_pipeline(table, Ridge(0.1))
    model = TransformedTargetRegressor(inner, func=np.log, inverse_func=np.exp).fit(x, DIABETES.target)
    same(model, {"X": x}, [("prediction", ("batch", 1))], atol=2e-3)
    behind = make_pipeline(StandardScaler(), TransformedTargetRegressor(Ridge(), func=np.log, inverse_func=np.exp))
    same(behind.fit(x, DIABETES.target), {"X": x}, [("prediction", ("batch", 1))], atol=2e-3)


def test_a_target_that_cannot_be_turned_back_is_named(same):
    x = DIABETES.data.astype(np.float32)
    model = TransformedTargetRegressor(Ridge(), transformer=QuantileTransformer(n_quantiles=50)).fit(x, DIABETES.target)
    with pytest.raises(ConversionFailed, match="turns its answers back with QuantileTransformer"):
        same(model, {"X": x}, [("prediction", ("batch", 1))])


@pytest.mark.parametrize("kept", [1, 2])
def test_a_selection_of_the_first_feature_alone_is_converted(same, kept):
    x = DIABETES.data[:, [2, 0, 1, 3]].astype(np.float32)
    model = make_pipeline(SelectKBest(f_regression, k=kept), Ridge()).fit(x, DIABETES.target)
    assert model[0].get_support()[0]
    same(model, {"X": x}, [("prediction", ("batch", 1))], atol=2e-3)


def test_a_column_transformer_may_stand_behind_another_step(same):
    x = FLOWERS.copy()
    x[::7, 1] = np.nan
    table = ColumnTransformer([("scaled", StandardScaler(), [0, 1]), ("rest", "passthrough", slice(2, 4))])
    inner = ColumnTransformer([("turned", table, [3, 2, 1, 0]), ("again", "passthrough", [0])])
    model = make_pipeline(SimpleImputer(), inner, LogisticRegression(max_iter=500)).fit(x, NAMES[IRIS.target])
    same(model, {"X": x}, [("label", ("batch",)), ("probabilities", ("batch", 3))])


@pytest.mark.parametrize(
    ("weights", "metric"), [("distance", "minkowski"), ("distance", "manhattan"), ("uniform", "minkowski")]
)
@pytest.mark.parametrize("labels", [NAMES, np.arange(3)])
def test_the_nearest_rows_weigh_what_scikit_learn_says(same, weights, metric, labels):
    some = np.arange(0, 150, 2)
    model = KNeighborsClassifier(7, weights=weights, metric=metric).fit(IRIS.data[some], labels[IRIS.target[some]])
    # Half of these are rows that it was trained on.
    same(model, {"X": FLOWERS}, [("label", ("batch",)), ("probabilities", ("batch", 3))])


@pytest.mark.parametrize("targets", [DIABETES.target, np.c_[DIABETES.target, DIABETES.data[:, 0]]])
def test_a_mean_of_the_nearest_rows_is_weighed(same, targets):
    x = DIABETES.data.astype(np.float32)
    model = KNeighborsRegressor(4, weights="distance").fit(x[::2], targets[::2])
    same(model, {"X": x}, [("prediction", ("batch", targets.ndim))], atol=2e-3)


@pytest.mark.parametrize(
    "model",
    [
        FixedThresholdClassifier(LogisticRegression(max_iter=500), threshold=0.3),
        FixedThresholdClassifier(make_pipeline(StandardScaler(), LogisticRegression()), threshold=0.8, pos_label="low"),
        FixedThresholdClassifier(DecisionTreeClassifier(max_depth=3)),
        TunedThresholdClassifierCV(make_pipeline(StandardScaler(), LogisticRegression()), scoring="recall"),
    ],
)
def test_the_threshold_decides_that_was_fixed_or_tuned(same, model):
    x = DIABETES.data.astype(np.float32)
    high = DIABETES.target > 140
    asks = getattr(model, "scoring", None) == "recall"
    model.fit(x, high.astype(int) if asks else np.where(high, "high", "low"))
    plain = model.estimator_.predict(x)
    assert (plain != model.predict(x)).any() or model.threshold == "auto"
    same(model, {"X": x}, [("label", ("batch",)), ("probabilities", ("batch", 2))])


def test_a_threshold_of_other_scores_than_probabilities_is_named(same):
    x = DIABETES.data.astype(np.float32)
    model = FixedThresholdClassifier(RidgeClassifier(), threshold=0.1).fit(x, DIABETES.target > 140)
    with pytest.raises(ConversionFailed, match="converted where probabilities decide"):
        same(model, {"X": x}, [("label", ("batch",))])


@pytest.mark.parametrize("labels", [NAMES[:2], np.arange(2)])
@pytest.mark.parametrize("passthrough", [False, True])
def test_a_stack_of_two_classes_takes_one_score_of_each_member(same, labels, passthrough):
    members = [
        ("forest", RandomForestClassifier(4, random_state=0)),
        ("machine", make_pipeline(StandardScaler(), SVC())),
        ("line", make_pipeline(MinMaxScaler(), LinearSVC(random_state=0))),
    ]
    x = DIABETES.data.astype(np.float32)
    model = StackingClassifier(members, LogisticRegression(), passthrough=passthrough, cv=2)
    model.fit(x, labels[(DIABETES.target > 140).astype(int)])
    assert model.stack_method_ == ["predict_proba", "decision_function", "decision_function"]
    same(model, {"X": x}, [("label", ("batch",)), ("probabilities", ("batch", 2))])


@pytest.mark.parametrize("features", ["missing-only", "all"])
def test_gaps_are_marked_alone_and_beside_what_fills_them(same, features):
    x = FLOWERS.copy()
    x[::7, 1] = np.nan
    marks = MissingIndicator(features=features)
    width = {"missing-only": 1, "all": 4}[features]
    same(make_pipeline(StandardScaler(), marks).fit(x), {"X": x}, [("transformed", ("batch", width), "bool")])
    union = FeatureUnion([("filled", SimpleImputer()), ("marks", marks)])
    model = make_pipeline(union, LogisticRegression(max_iter=500)).fit(x, NAMES[IRIS.target])
    same(model, {"X": x}, [("label", ("batch",)), ("probabilities", ("batch", 3))])


@pytest.mark.parametrize(
    ("degree", "extrapolation"),
    [(1, "constant"), (1, "continue"), (2, "linear"), (3, "linear"), (3, "constant"), (3, "continue")],
)
@pytest.mark.parametrize("more", [{}, {"knots": "quantile", "include_bias": False, "n_knots": 4}])
def test_splines_are_written_out_between_their_knots_and_beyond(same, degree, extrapolation, more):
    model = SplineTransformer(degree=degree, extrapolation=extrapolation, **more).fit(IRIS.data)
    beyond = np.concatenate([FLOWERS, FLOWERS[:20] * 1.7, FLOWERS[:20] - 6, np.float32(IRIS.data.max(0))[None]])
    same(model, {"X": beyond}, [("transformed", ("batch", model.n_features_out_))], atol=2e-3)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (SplineTransformer(extrapolation="periodic"), "extrapolation='periodic' is not converted"),
        (SplineTransformer(degree=1, extrapolation="linear"), "of degree 1 is not converted"),
    ],
)
def test_splines_that_are_not_written_out_are_named(same, model, said):
    model = make_pipeline(model, Ridge()).fit(IRIS.data, IRIS.target)
    with pytest.raises(ConversionFailed, match=said):
        same(model, {"X": FLOWERS}, [("prediction", ("batch", 1))])
