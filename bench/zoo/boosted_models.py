"""The boosted part of the zoo: XGBoost, LightGBM and CatBoost in their own formats, in joblib and in skops."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from sklearn_models import Fit, _cancer, _columns, _diabetes, _iris, _people, _texts


def models(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield name and file of every model; needs the boosting toolchain."""
    import joblib

    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield from boosted_files(folder)
        for name, fit in boosted_estimators():
            path = folder / f"{name}.joblib"
            joblib.dump(fit(), path)
            yield name, path
        yield from skops_files(folder)


def skops_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield estimators saved by skops."""
    import skops.io
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    frame, y = _people()
    words = _columns(("w", OneHotEncoder(handle_unknown="ignore"), ["city", "size"]), ("n", StandardScaler(), ["age"]))
    for name, model in (
        ("skops-scaled-logistic", make_pipeline(StandardScaler(), LogisticRegression()).fit(*_cancer())),
        ("skops-forest", RandomForestClassifier(8).fit(*_iris())),
        ("skops-hist", HistGradientBoostingClassifier(max_iter=5).fit(*_iris())),
        ("skops-strings", make_pipeline(words, LogisticRegression()).fit(frame, y)),
    ):
        path = folder / f"{name}.skops"
        skops.io.dump(model, path)
        yield name, path


def boosted_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield models in the formats of XGBoost, LightGBM and CatBoost."""
    import catboost
    import lightgbm
    import pandas as pd
    import xgboost

    rng = np.random.default_rng(0)
    iris, (cancer, malign), (body, sugar) = _iris(), _cancer(), _diabetes()
    holes = np.where(rng.random(cancer.shape) < 0.1, np.nan, cancer)
    zeros = np.where(rng.random(body.shape) < 0.3, 0.0, body)
    queries, ranks = np.arange(len(sugar)) // 10, (sugar // 60).astype(int)
    codes = pd.DataFrame({"a": pd.Categorical(rng.integers(0, 12, 400)), "b": rng.normal(size=400)})
    answer = ((codes.a.astype(int) % 3 == 1) ^ (codes.b > 0)).astype(int)
    x: dict[str, Any] = {"n_estimators": 20, "max_depth": 4, "n_jobs": 1}
    light: dict[str, Any] = {"n_estimators": 20, "num_leaves": 15, "n_jobs": 1, "verbose": -1}
    cat: dict[str, Any] = {"iterations": 20, "depth": 4, "verbose": 0, "allow_writing_files": False, "thread_count": 1}
    for name, model in (
        ("xgboost-binary.json", xgboost.XGBClassifier(**x).fit(cancer, malign)),
        ("xgboost-multiclass.ubj", xgboost.XGBClassifier(**x).fit(*iris)),
        ("xgboost-regression.json", xgboost.XGBRegressor(**x).fit(body, sugar)),
        ("xgboost-missing.ubj", xgboost.XGBClassifier(**x).fit(holes, malign)),
        ("xgboost-dart.json", xgboost.XGBClassifier(booster="dart", rate_drop=0.3, **x).fit(cancer, malign)),
        ("xgboost-linear.json", xgboost.XGBRegressor(booster="gblinear", n_estimators=20).fit(body, sugar)),
        ("xgboost-poisson.json", xgboost.XGBRegressor(objective="count:poisson", **x).fit(body, sugar)),
        ("xgboost-ranking.json", xgboost.XGBRanker(**x).fit(body, ranks, qid=queries)),
        ("xgboost-forest.json", xgboost.XGBRFClassifier(n_estimators=20).fit(*iris)),
        ("xgboost-raw-logit.json", xgboost.XGBClassifier(objective="binary:logitraw", **x).fit(cancer, malign)),
        (
            "xgboost-vector-leaves.json",
            xgboost.XGBRegressor(multi_strategy="multi_output_tree", **x).fit(body, np.c_[sugar, -sugar]),
        ),
        (
            "xgboost-categories.json",
            xgboost.XGBClassifier(enable_categorical=True, max_cat_to_onehot=1, **x).fit(codes, answer),
        ),
    ):
        model.save_model(folder / name)
        yield name.partition(".")[0], folder / name
    for name, model in (
        ("lightgbm-binary.txt", lightgbm.LGBMClassifier(**light).fit(cancer, malign)),
        ("lightgbm-multiclass.txt", lightgbm.LGBMClassifier(**light).fit(*iris)),
        ("lightgbm-regression.txt", lightgbm.LGBMRegressor(**light).fit(body, sugar)),
        ("lightgbm-missing.txt", lightgbm.LGBMClassifier(**light).fit(holes, malign)),
        ("lightgbm-zero-missing.txt", lightgbm.LGBMRegressor(zero_as_missing=True, **light).fit(zeros, sugar)),
        ("lightgbm-dart.txt", lightgbm.LGBMRegressor(boosting_type="dart", **light).fit(body, sugar)),
        ("lightgbm-ranking.txt", lightgbm.LGBMRanker(**light).fit(body, ranks, group=np.bincount(queries))),
        (
            "lightgbm-categories.txt",
            lightgbm.LGBMClassifier(min_data_per_group=5, cat_smooth=1, **light).fit(codes, answer),
        ),
    ):
        model.booster_.save_model(folder / name)
        yield name.partition(".")[0], folder / name
    for name, model in (
        ("catboost-binary.cbm", catboost.CatBoostClassifier(**cat).fit(cancer, malign)),
        ("catboost-multiclass.cbm", catboost.CatBoostClassifier(**cat).fit(*iris)),
        ("catboost-regression.cbm", catboost.CatBoostRegressor(**cat).fit(body, sugar)),
        ("catboost-missing.cbm", catboost.CatBoostClassifier(nan_mode="Max", **cat).fit(holes, malign)),
        (
            "catboost-uncertain-regression.cbm",
            catboost.CatBoostRegressor(loss_function="RMSEWithUncertainty", **cat).fit(body, sugar),
        ),
        ("catboost-labels.cbm", catboost.CatBoostClassifier(**cat).fit(cancer, np.where(malign, "good", "bad"))),
        ("catboost-lossguide.cbm", catboost.CatBoostRegressor(grow_policy="Lossguide", **cat).fit(body, sugar)),
        ("catboost-ranking.cbm", catboost.CatBoostRanker(**cat).fit(body, sugar / 400, group_id=queries)),
    ):
        model.save_model(str(folder / name))
        yield name.partition(".")[0], folder / name


def boosted_estimators() -> Iterator[tuple[str, Fit]]:
    """Yield estimators of the three libraries alone and in scikit-learn's pipelines and ensembles."""
    import catboost
    import lightgbm
    import xgboost
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.ensemble import StackingClassifier, VotingClassifier
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.multioutput import MultiOutputRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

    cat: dict[str, Any] = {"iterations": 15, "depth": 4, "verbose": 0, "allow_writing_files": False, "thread_count": 1}
    light: dict[str, Any] = {"n_estimators": 15, "num_leaves": 12, "n_jobs": 1, "verbose": -1}
    x: dict[str, Any] = {"n_estimators": 15, "max_depth": 4, "n_jobs": 1}
    one_hot = ("w", OneHotEncoder(handle_unknown="ignore"), ["city", "size"])
    ordinal = ("w", OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), ["city", "size"])
    numbers = ("n", StandardScaler(), ["age", "income", "visits"])

    def alone(made: Any, data: Any) -> Fit:
        return lambda: made.fit(*data())

    queries = np.arange(442) // 10
    for name, made, data in (
        ("xgb-classifier", xgboost.XGBClassifier(**x), _cancer),
        ("xgb-multiclass", xgboost.XGBClassifier(**x), _iris),
        ("xgb-regressor", xgboost.XGBRegressor(**x), _diabetes),
        ("lgbm-classifier", lightgbm.LGBMClassifier(**light), _cancer),
        ("lgbm-multiclass", lightgbm.LGBMClassifier(**light), _iris),
        ("lgbm-regressor", lightgbm.LGBMRegressor(**light), _diabetes),
        ("catboost-classifier", catboost.CatBoostClassifier(**cat), _cancer),
        ("catboost-multiclass-pickled", catboost.CatBoostClassifier(**cat), _iris),
        ("catboost-regressor", catboost.CatBoostRegressor(**cat), _diabetes),
        ("xgb-scaled", make_pipeline(StandardScaler(), xgboost.XGBClassifier(**x)), _cancer),
        ("lgbm-scaled", make_pipeline(StandardScaler(), lightgbm.LGBMClassifier(**light)), _cancer),
        ("catboost-scaled", make_pipeline(StandardScaler(), catboost.CatBoostClassifier(**cat)), _cancer),
        ("xgb-strings", make_pipeline(_columns(one_hot, numbers), xgboost.XGBClassifier(**x)), _people),
        ("xgb-strings-sparse", make_pipeline(_columns(one_hot), xgboost.XGBClassifier(**x)), _people),
        ("lgbm-strings", make_pipeline(_columns(ordinal, numbers), lightgbm.LGBMClassifier(**light)), _people),
        ("catboost-strings", make_pipeline(_columns(one_hot, numbers), catboost.CatBoostClassifier(**cat)), _people),
        ("xgb-texts", make_pipeline(TfidfVectorizer(), xgboost.XGBClassifier(**x)), _texts),
        ("xgb-calibrated", CalibratedClassifierCV(xgboost.XGBClassifier(**x), cv=2), _cancer),
        ("lgbm-calibrated", CalibratedClassifierCV(lightgbm.LGBMClassifier(**light), method="isotonic", cv=2), _cancer),
        ("catboost-uncertain", catboost.CatBoostRegressor(loss_function="RMSEWithUncertainty", **cat), _diabetes),
        ("xgb-missing-value", xgboost.XGBClassifier(missing=0.0, **x), _cancer),
        ("boosted-voting", VotingClassifier(
            [("x", xgboost.XGBClassifier(**x)), ("l", lightgbm.LGBMClassifier(**light))], voting="soft"), _iris),
        ("boosted-stacking", StackingClassifier(
            [("x", xgboost.XGBClassifier(**x)), ("c", catboost.CatBoostClassifier(**cat))],
            LogisticRegression(), cv=2), _cancer),
    ):  # fmt: skip
        yield name, alone(made, data)
    yield (
        "xgb-ranker",
        lambda: xgboost.XGBRanker(**x).fit(_diabetes()[0], (_diabetes()[1] // 60).astype(int), qid=queries),
    )
    yield (
        "lgbm-ranker",
        lambda: lightgbm.LGBMRanker(**light).fit(
            _diabetes()[0], (_diabetes()[1] // 60).astype(int), group=np.bincount(queries)
        ),
    )
    yield (
        "lgbm-labels",
        lambda: lightgbm.LGBMClassifier(**light).fit(_iris()[0], np.array(["a", "b", "c"])[_iris()[1]]),
    )
    yield (
        "xgb-multioutput",
        lambda: MultiOutputRegressor(xgboost.XGBRegressor(**x)).fit(
            _diabetes()[0], np.c_[_diabetes()[1], -_diabetes()[1]]
        ),
    )
