"""The scikit-learn part of the zoo: every estimator that skl2onnx lists, and pipelines with strings.

Trained in seconds on data sets that come with scikit-learn.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import sklearn_combinations
import sklearn_nested

Fit = Callable[[], Any]


def _words(text: str) -> list[str]:
    return text.split()


_NO_TABLE = frozenset(
    _words(
        "DictVectorizer FeatureHasher LabelBinarizer LabelEncoder MultiLabelBinarizer PatchExtractor SparseCoder "
        "TfidfTransformer NearestNeighbors IsotonicRegression KernelCenterer HashingVectorizer CountVectorizer "
        "TfidfVectorizer"
    )
)
"""They take dicts, labels, images or texts; the texts come in pipelines below."""


def models(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield name and file of every model; needs pandas beside scikit-learn to make them, not to run them."""
    import joblib

    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        beside = (*sklearn_combinations.combinations(), *sklearn_nested.nested())
        for name, fit in [*estimators(), *pipelines(), *beside]:
            path = folder / f"{name}.joblib"
            joblib.dump(fit(), path)
            yield name, path


def _iris() -> Any:
    from sklearn.datasets import load_iris

    return load_iris(return_X_y=True)


def _cancer() -> Any:
    from sklearn.datasets import load_breast_cancer

    return load_breast_cancer(return_X_y=True)


def _diabetes() -> Any:
    from sklearn.datasets import load_diabetes

    return load_diabetes(return_X_y=True)


def estimators() -> Iterator[tuple[str, Fit]]:
    """Yield name and training of every estimator of scikit-learn that skl2onnx lists and that takes a table."""
    from skl2onnx._supported_operators import sklearn_operator_name_map
    from sklearn.utils import all_estimators

    listed = {cls.__name__ for cls in sklearn_operator_name_map}
    for name, cls in all_estimators():
        if name in listed and name not in _NO_TABLE:
            yield f"sklearn-{name}", lambda cls=cls: _fitted(cls)


def _fitted(cls: type[Any]) -> Any:
    from sklearn.base import is_regressor
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

    wanted = inspect.signature(cls.__init__).parameters
    regressor = "Regress" in cls.__name__ or cls.__name__ in ("RegressorChain", "TransformedTargetRegressor")
    inner = Ridge() if regressor else LogisticRegression(max_iter=500)
    pair = (
        [("a", Ridge()), ("b", DecisionTreeRegressor(max_depth=3))]
        if regressor
        else [("a", LogisticRegression(max_iter=500)), ("b", DecisionTreeClassifier(max_depth=3))]
    )
    values: dict[str, Any] = {
        "estimator": inner, "estimators": pair, "n_estimators": 8, "max_iter": 300, "random_state": 0,
        "transformers": [("a", "passthrough", [0, 1])], "transformer_list": [("a", "passthrough")],
        "steps": [("a", inner)], "param_grid": {"C": [0.1, 1.0]}, "param_distributions": {"C": [0.1, 1.0]},
        "n_components": 2, "n_iter": 2, "algorithm": None,
    }  # fmt: skip
    needed = {k for k, p in wanted.items() if p.default is inspect.Parameter.empty}
    small = {"n_estimators", "random_state"} | ({"n_components"} if "PLS" in cls.__name__ else set())
    arguments = {k: values[k] for k in wanted if k in values and (k in needed or k in small)}
    if cls.__name__ == "QuadraticDiscriminantAnalysis":
        arguments["reg_param"] = 0.1
    if cls.__name__ == "GaussianRandomProjection":
        arguments["n_components"] = 2
    if cls.__name__ == "LocalOutlierFactor":
        arguments["novelty"] = True
    if cls.__name__ == "ColumnTransformer":
        arguments["remainder"] = "drop"
    tables = [_iris(), _diabetes()]
    try:
        made = cls(**arguments)
        if is_regressor(made):
            tables.reverse()
    except TypeError:
        made = cls()
    x, y = tables[0]
    if cls.__name__ in ("OneHotEncoder", "OrdinalEncoder", "TargetEncoder"):
        x, y = np.round(x), (y > 0).astype(int)
    if cls.__name__ == "GaussianProcessClassifier":
        x, y = x[:100], y[:100]
    chances: list[tuple[Any, Any]] = [
        (x, y), (np.abs(x), np.abs(y) + 1.0), (np.abs(x), y), (x, np.c_[y, y[::-1]]),
        (x, (y > np.median(y)).astype(int)),
        (x, np.c_[y > np.median(y), y > 1].astype(int)), (x[:, :1], y), (x[:, :2], x[:, 2:4]),
    ]  # fmt: skip
    if "MultiTask" in cls.__name__ or cls.__name__ in ("MultiOutputRegressor", "RegressorChain"):
        chances.insert(0, chances[3])
    failure: Exception | None = None
    for table, target in chances:
        try:
            return cls(**arguments).fit(table, target)
        except (TypeError, ValueError) as error:
            failure = failure or error
    raise ValueError(f"{cls.__name__} cannot be fitted: {failure}")


def _people(rows: int = 400) -> tuple[Any, Any]:
    """Return a table with strings, categories, numbers and gaps, and a target that depends on them all."""
    import pandas as pd

    rng = np.random.default_rng(7)
    city = rng.choice(["Rome", "Oslo", "Lima", "Cairo"], rows)
    size = rng.choice(["small", "medium", "large"], rows)
    age, income = rng.normal(40, 12, rows), rng.lognormal(10, 0.5, rows)
    y = ((city == "Oslo") * 1.0 + (size == "large") * 0.7 + (age > 45) + rng.normal(0, 0.4, rows) > 1.2).astype(int)
    frame = pd.DataFrame({"city": city, "size": size, "age": age, "income": income, "visits": rng.integers(0, 9, rows)})
    frame["city"], frame["size"] = frame["city"].astype(object), frame["size"].astype(object)
    return frame, y


def _texts() -> tuple[list[str], Any]:
    good = _words("fine great lovely quick warm bright clean happy solid smooth")
    bad = _words("poor awful slow cold dull dirty sad weak rough broken")
    both = _words("the room and food was very rather this place")
    rng = np.random.default_rng(3)
    rows = [
        " ".join(rng.permutation([*rng.choice(words, 3), *rng.choice(both, 4)]))
        for words in (good, bad)
        for _ in range(60)
    ]
    return rows, np.repeat([1, 0], 60)


def _columns(*transformers: Any, **rest: Any) -> Any:
    from sklearn.compose import ColumnTransformer

    return ColumnTransformer(list(transformers), **rest)


def pipelines() -> Iterator[tuple[str, Fit]]:
    """Yield name and training of pipelines on strings, categories, texts, gaps and several targets."""
    from sklearn.compose import make_column_selector
    from sklearn.decomposition import PCA, TruncatedSVD
    from sklearn.ensemble import (
        HistGradientBoostingClassifier,
        HistGradientBoostingRegressor,
        RandomForestClassifier,
        RandomForestRegressor,
        StackingClassifier,
        VotingClassifier,
    )  # fmt: skip
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
    from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.model_selection import GridSearchCV
    from sklearn.multioutput import ClassifierChain, MultiOutputClassifier
    from sklearn.pipeline import FeatureUnion, make_pipeline
    from sklearn.preprocessing import (
        FunctionTransformer,
        KBinsDiscretizer,
        OneHotEncoder,
        OrdinalEncoder,
        PolynomialFeatures,
        StandardScaler,
        TargetEncoder,
    )  # fmt: skip

    words, numbers = ["city", "size"], ["age", "income", "visits"]
    one_hot = ("words", OneHotEncoder(handle_unknown="ignore"), words)
    ordinal = ("words", OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), words)
    scaled = ("numbers", StandardScaler(), numbers)

    def people(*steps: Any, target: Any = None) -> Any:
        frame, y = _people()
        return make_pipeline(*steps).fit(frame, y if target is None else target(y))

    def gaps(table: Any) -> Any:
        rng = np.random.default_rng(1)
        return np.where(rng.random(table.shape) < 0.1, np.nan, table)

    yield "strings-onehot-logistic", lambda: people(_columns(one_hot, scaled), LogisticRegression())
    yield "strings-ordinal-forest", lambda: people(_columns(ordinal, scaled), RandomForestClassifier(10, max_depth=5))
    yield (
        "strings-onehot-infrequent",
        lambda: people(
            _columns(("words", OneHotEncoder(min_frequency=80, handle_unknown="infrequent_if_exist"), words), scaled),
            LogisticRegression(),
        ),
    )
    yield "strings-onehot-drop", lambda: people(_columns(("w", OneHotEncoder(drop="first"), words), scaled), Ridge())
    yield (
        "strings-target-encoder",
        lambda: people(_columns(("w", TargetEncoder(), words), scaled), LogisticRegression()),
    )
    yield (
        "strings-imputed",
        lambda: people(
            _columns(
                (
                    "w",
                    make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore")),
                    words,
                ),
                ("n", make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), numbers),
            ),
            LogisticRegression(),
        ),
    )
    yield (
        "strings-selector",
        lambda: people(
            _columns(
                ("w", OneHotEncoder(handle_unknown="ignore"), make_column_selector(dtype_include=object)),
                ("n", StandardScaler(), make_column_selector(dtype_include="number")),
            ),
            LogisticRegression(),
        ),
    )
    yield (
        "strings-labels",
        lambda: people(_columns(one_hot, scaled), LogisticRegression(), target=lambda y: np.where(y, "yes", "no")),
    )
    yield (
        "strings-passthrough-boosting",
        lambda: people(_columns(ordinal, remainder="passthrough"), HistGradientBoostingClassifier(max_iter=10)),
    )
    yield (
        "strings-hist-categories",
        lambda: people(
            _columns(ordinal, remainder="passthrough"),
            HistGradientBoostingClassifier(max_iter=10, categorical_features=[0, 1]),
        ),
    )
    yield (
        "strings-search",
        lambda: GridSearchCV(
            make_pipeline(_columns(one_hot, scaled), LogisticRegression()),
            {"logisticregression__C": [0.1, 1.0]},
            cv=2,
        ).fit(*_people()),
    )
    yield (
        "strings-stacking",
        lambda: people(
            _columns(one_hot, scaled),
            StackingClassifier([("a", LogisticRegression()), ("b", RandomForestClassifier(5, max_depth=4))], cv=2),
        ),
    )
    yield (
        "strings-text-column",
        lambda: make_pipeline(
            _columns(("t", TfidfVectorizer(), "text"), ("n", StandardScaler(), ["length"])), LogisticRegression()
        ).fit(_reviews(), _texts()[1]),
    )
    yield "texts-tfidf-logistic", lambda: make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(*_texts())
    yield (
        "texts-tfidf-bigrams",
        lambda: make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression()).fit(
            *_texts()
        ),
    )
    yield (
        "texts-count-forest",
        lambda: make_pipeline(CountVectorizer(stop_words=["the", "and"]), RandomForestClassifier(10, max_depth=5)).fit(
            *_texts()
        ),
    )
    yield (
        "texts-svd",
        lambda: make_pipeline(TfidfVectorizer(), TruncatedSVD(4), LogisticRegression()).fit(*_texts()),
    )
    yield (
        "texts-binary-counts",
        lambda: make_pipeline(CountVectorizer(binary=True), LogisticRegression()).fit(*_texts()),
    )
    yield (
        "gaps-median-ridge",
        lambda: make_pipeline(SimpleImputer(strategy="median"), Ridge()).fit(gaps(_diabetes()[0]), _diabetes()[1]),
    )
    yield (
        "gaps-indicator",
        lambda: make_pipeline(SimpleImputer(add_indicator=True), Ridge()).fit(gaps(_diabetes()[0]), _diabetes()[1]),
    )
    yield (
        "gaps-knn",
        lambda: make_pipeline(KNNImputer(n_neighbors=3), Ridge()).fit(gaps(_diabetes()[0][:150]), _diabetes()[1][:150]),
    )
    yield (
        "gaps-iterative",
        lambda: make_pipeline(IterativeImputer(max_iter=3), Ridge()).fit(gaps(_diabetes()[0]), _diabetes()[1]),
    )
    yield "gaps-hist", lambda: HistGradientBoostingClassifier(max_iter=10).fit(gaps(_cancer()[0]), _cancer()[1])
    yield (
        "gaps-hist-regressor",
        lambda: HistGradientBoostingRegressor(max_iter=10).fit(gaps(_diabetes()[0]), _diabetes()[1]),
    )
    yield (
        "gaps-forest",
        lambda: RandomForestRegressor(10, max_depth=6).fit(gaps(_diabetes()[0]), _diabetes()[1]),
    )
    yield (
        "function-log1p",
        lambda: make_pipeline(FunctionTransformer(np.log1p), Ridge()).fit(np.abs(_diabetes()[0]), _diabetes()[1]),
    )
    yield "function-none", lambda: make_pipeline(FunctionTransformer(), Ridge()).fit(*_diabetes())
    yield (
        "union-pca",
        lambda: make_pipeline(FeatureUnion([("p", PCA(2)), ("s", StandardScaler())]), LogisticRegression()).fit(
            *_iris()
        ),
    )
    yield "polynomial", lambda: make_pipeline(StandardScaler(), PolynomialFeatures(2), Ridge()).fit(*_diabetes())
    yield "bins", lambda: make_pipeline(KBinsDiscretizer(5), LogisticRegression()).fit(*_iris())
    yield "scaled-forest", lambda: make_pipeline(StandardScaler(), RandomForestClassifier(20)).fit(*_cancer())
    yield (
        "voting-soft",
        lambda: VotingClassifier(
            [("a", LogisticRegression(max_iter=500)), ("b", RandomForestClassifier(5))], voting="soft"
        ).fit(*_iris()),
    )
    two = np.c_[_diabetes()[1] > 140, _diabetes()[1] > 200].astype(int)
    yield "targets-multioutput", lambda: MultiOutputClassifier(LogisticRegression()).fit(_diabetes()[0], two)
    yield "targets-forest", lambda: RandomForestClassifier(8, max_depth=5).fit(_diabetes()[0], two)
    yield "targets-chain", lambda: ClassifierChain(LogisticRegression()).fit(_diabetes()[0], two)
    yield "targets-regressor", lambda: RandomForestRegressor(8, max_depth=5).fit(_diabetes()[0], two * 2.5)


def _reviews() -> Any:
    import pandas as pd

    texts, _ = _texts()
    return pd.DataFrame({"text": pd.Series(texts, dtype=object), "length": [float(len(text)) for text in texts]})
