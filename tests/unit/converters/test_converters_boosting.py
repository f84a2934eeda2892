"""Boosted models of three libraries and pipelines with strings, texts, gaps and skops: from file to parity."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from executor.toolchain import Toolchain


def _words(text: str) -> list[str]:
    return text.split()


CHECKOUT = Path(__file__).parents[3]
OWN = _words(
    "xgboost-binary xgboost-multiclass xgboost-regression xgboost-missing xgboost-dart xgboost-linear "
    "xgboost-poisson xgboost-ranking xgboost-forest xgboost-vector-leaves xgboost-categories xgboost-raw-logit "
    "lightgbm-binary lightgbm-multiclass lightgbm-regression lightgbm-missing lightgbm-zero-missing lightgbm-dart "
    "lightgbm-ranking lightgbm-categories catboost-binary catboost-multiclass catboost-regression "
    "catboost-missing catboost-labels catboost-lossguide catboost-ranking catboost-uncertain-regression"
)
ESTIMATORS = _words(
    "xgb-classifier xgb-multiclass xgb-regressor lgbm-classifier lgbm-multiclass lgbm-regressor catboost-classifier "
    "catboost-regressor xgb-scaled lgbm-scaled catboost-scaled xgb-strings xgb-strings-sparse lgbm-strings "
    "catboost-strings xgb-texts xgb-calibrated xgb-missing-value boosted-voting boosted-stacking xgb-ranker "
    "lgbm-ranker lgbm-labels xgb-multioutput lgbm-calibrated catboost-uncertain"
)
PIPELINES = _words(
    "strings-onehot-logistic strings-hist-categories strings-text-column strings-imputed strings-labels "
    "texts-tfidf-bigrams gaps-iterative gaps-indicator function-log1p targets-multioutput targets-forest scaled-forest "
    "skops-scaled-logistic skops-forest skops-hist skops-strings"
)
_cache: dict[str, dict[str, Any]] = {}


@pytest.fixture
def found(toolchain: Callable[[str], Toolchain], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What came out of every model, by name; they all go through one process of the toolchain."""
    if not _cache:
        tools = toolchain("boosting")
        path = f"{CHECKOUT}:{CHECKOUT / 'bench' / 'zoo'}"
        done = subprocess.run(
            [tools.interpreter, "-P", "-s", Path(__file__).with_name("boosting_through.py"),
             tmp_path_factory.mktemp("boosting") / "zoo"],
            capture_output=True, text=True, check=False, timeout=300,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        _cache.update({line["name"]: line for line in map(json.loads, done.stdout.splitlines())})
    return _cache


@pytest.mark.parametrize("name", [*OWN, *ESTIMATORS, *PIPELINES])
def test_a_model_answers_in_onnx_as_in_its_own_library(found: dict[str, dict[str, Any]], name: str) -> None:
    assert found[name]["state"] == "passed", found[name]
    assert found[name]["batches"], found[name]


@pytest.mark.parametrize("name", OWN)
def test_a_boosted_file_takes_one_table_and_gives_what_its_objective_promises(
    found: dict[str, dict[str, Any]], name: str
) -> None:
    (table,) = found[name]["inputs"]
    outputs = {output[0]: output[1:] for output in found[name]["outputs"]}
    assert table[:2] == ["X", "float32"] and table[2][0] == "batch"
    if "ranking" in name:
        assert outputs == {"scores": ["float32", ["batch", 1]]}
    elif any(
        word in name for word in ("regression", "poisson", "linear", "vector", "zero", "lossguide", "raw-logit")
    ) or (name == "lightgbm-dart"):
        assert list(outputs) == ["prediction"]
    else:
        assert outputs["label"][1] == ["batch"]
        assert outputs["label"][0] == ("string" if name == "catboost-labels" else "int64")
        assert outputs["probabilities"][1] == ["batch", 3 if "multiclass" in name or name == "xgboost-forest" else 2]


def test_trees_give_the_very_probabilities_of_their_library(found: dict[str, dict[str, Any]]) -> None:
    # Rows lie on the thresholds too, so one comparison rounded otherwise would show as a whole leaf.
    for name in OWN:
        outputs = {output[0] for output in found[name]["outputs"]}
        if "probabilities" in outputs:
            assert found[name]["max_abs"] < 1e-6, name


def test_each_column_of_a_table_with_strings_is_an_input_of_its_name(found: dict[str, dict[str, Any]]) -> None:
    inputs = {name: dtype for name, dtype, _ in found["strings-onehot-logistic"]["inputs"]}
    assert inputs == {
        "city": "string", "size": "string", "age": "float32", "income": "float32", "visits": "float32",
    }  # fmt: skip
    assert [spec[0] for spec in found["strings-text-column"]["inputs"]] == ["text", "length"]


def test_an_estimator_of_two_targets_gives_the_probabilities_of_each(found: dict[str, dict[str, Any]]) -> None:
    for name in ("targets-multioutput", "targets-forest"):
        assert [spec[0] for spec in found[name]["outputs"]] == ["label", "probabilities_0", "probabilities_1"]
