"""XGBoost, LightGBM, CatBoost and skops files: small real ones in the folder ``boosted``, and doctored ones."""

from __future__ import annotations

import json
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest

from analyzer import describe
from schemas.descriptor import Format

REAL = Path(__file__).with_name("boosted")


@pytest.mark.parametrize(
    ("name", "format_", "architecture", "width"),
    [
        ("iris.json", Format.XGBOOST, "gbtree of 6 trees", 4),
        ("iris.ubj", Format.XGBOOST, "gbtree of 6 trees", 4),
        ("lightgbm.txt", Format.LIGHTGBM, "gbdt of 6 trees", 4),
        ("catboost.cbm", Format.CATBOOST, "CatBoost of 2 trees", 4),
    ],
)
def test_a_boosted_model_tells_its_trees_and_features_from_its_bytes(
    tmp_path: Path, name: str, format_: Format, architecture: str, width: int
) -> None:
    shutil.copy(REAL / name, tmp_path / "model.bin")

    report = describe(tmp_path / "model.bin")

    found = report.descriptor
    assert report.refusal is None
    assert (found.format, found.architecture, found.task) == (format_, architecture, "tabular-classification")
    assert found.inputs[0].shape == ("batch", width)
    assert found.toolchain == "boosting"
    assert found.operators == {"Tree": int(architecture.split()[2])}
    assert not found.findings


def test_a_catboost_model_tells_its_labels_and_version() -> None:
    found = describe(REAL / "catboost.cbm").descriptor
    assert found.labels == ("setosa", "versicolor", "virginica")
    assert found.framework_version is not None and found.framework_version.startswith("1.")


def test_a_catboost_model_of_categories_is_refused_with_the_cause() -> None:
    refusal = describe(REAL / "categorical.cbm").refusal
    assert refusal is not None and refusal.code == "unsupported"
    assert "1 categorical features" in refusal.message and "OrdinalEncoder" in refusal.hint


@pytest.mark.parametrize(
    ("name", "format_", "architecture"),
    [
        ("xgboost.joblib", Format.SKLEARN, "XGBClassifier"),
        ("lightgbm.joblib", Format.SKLEARN, "LGBMClassifier"),
        ("catboost.joblib", Format.SKLEARN, "CatBoostClassifier"),
        ("pipeline.joblib", Format.SKLEARN, "Pipeline(StandardScaler, XGBClassifier)"),
        ("booster.joblib", Format.XGBOOST, "Booster"),
        ("pipeline.skops", Format.SKOPS, "Pipeline"),
    ],
)
def test_a_saved_estimator_is_clean_and_runs_in_the_boosting_toolchain(
    name: str, format_: Format, architecture: str
) -> None:
    report = describe(REAL / name)
    assert report.refusal is None
    assert (report.descriptor.format, report.descriptor.architecture) == (format_, architecture)
    assert report.descriptor.toolchain == "boosting"
    assert not report.descriptor.findings


def xgboost_json(path: Path, **changes: Any) -> Path:
    """Write the real model with parts of its learner replaced."""
    root = json.loads((REAL / "iris.json").read_text())
    root["learner"].update(changes)
    path.write_text(json.dumps(root))
    return path


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"learner_model_param": {"num_feature": "99999999999999"}}, "says that it takes 99999999999999 features"),
        ({"learner_model_param": {"num_feature": "-3"}}, "says that it takes -3 features"),
        ({"learner_model_param": {"num_feature": {}}}, "says that it takes -1 features"),
        ({"learner_model_param": []}, "has no part 'learner_model_param'"),
        ({"objective": {"name": 7}}, "names no booster or no objective"),
        (
            {"gradient_booster": {"name": "gbtree", "model": {"gbtree_model_param": {"num_trees": "9"}, "trees": []}}},
            "says that it has 9 trees and holds 0",
        ),
    ],
)
def test_an_xgboost_model_that_contradicts_itself_ends_with_one_sentence(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    refusal = describe(xgboost_json(tmp_path / "model.json", **changes)).refusal
    assert refusal is not None and refusal.code == "model_failed"
    assert sentence in refusal.message and refusal.hint


def test_an_xgboost_model_nested_without_end_ends_with_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text('{"learner": ' + "[" * 200_000)
    (tmp_path / "deep.ubj").write_bytes(b"{L" + struct.pack(">q", 7) + b"learner" + b"[" * 200_000)
    for name in ("deep.json", "deep.ubj"):
        refusal = describe(tmp_path / name).refusal
        assert refusal is not None and refusal.message.count(".") == 1, name
        assert "nest" in refusal.message


@pytest.mark.parametrize("marker", [b"S", b"[$d#", b"[$U#", b"[#"])
def test_a_ubj_file_that_announces_more_than_it_has_is_told_as_truncated(tmp_path: Path, marker: bytes) -> None:
    count = b"L" + struct.pack(">q", 1 << 40)
    (tmp_path / "model.ubj").write_bytes(b"{L" + struct.pack(">q", 7) + b"learner" + marker + count + b"d" * 40)
    refusal = describe(tmp_path / "model.ubj").refusal
    assert refusal is not None and refusal.code in ("model_failed", "limit_exceeded")


@pytest.mark.parametrize("name", ["iris.json", "iris.ubj", "lightgbm.txt", "catboost.cbm", "pipeline.skops"])
def test_a_cut_or_garbled_model_ends_with_a_reason_and_never_with_a_traceback(tmp_path: Path, name: str) -> None:
    whole = (REAL / name).read_bytes()
    # After its last tree a LightGBM model only tells how it was trained.
    needed = whole.find(b"end of trees") if name == "lightgbm.txt" else len(whole)
    for number in range(0, 40):
        cut = len(whole) * number // 40
        (tmp_path / "cut").write_bytes(whole[:cut])
        refusal = describe(tmp_path / "cut").refusal
        assert cut >= needed or (refusal is not None and refusal.code != "internal"), cut
        garbled = whole[:cut] + bytes([whole[cut] ^ 0xFF]) + whole[cut + 1 :]
        (tmp_path / "garbled").write_bytes(garbled)
        describe(tmp_path / "garbled")


def skops_file(path: Path, node: dict[str, Any]) -> Path:
    """Write the real skops file with one more node in its schema."""
    with zipfile.ZipFile(REAL / "pipeline.skops") as source, zipfile.ZipFile(path, "w") as target:
        for member in source.namelist():
            data = source.read(member)
            if member == "schema.json":
                schema = json.loads(data)
                schema["content"]["content"]["extra"] = node
                data = json.dumps(schema).encode()
            target.writestr(member, data)
    return path


@pytest.mark.parametrize(
    ("node", "code"),
    [
        ({"__module__": "os", "__class__": "system", "__loader__": "FunctionNode"}, "quarantined"),
        ({"__module__": "builtins", "__class__": "eval", "__loader__": "TypeNode"}, "quarantined"),
        ({"__module__": "operator", "__class__": "attrgetter", "__loader__": "OperatorFuncNode"}, "quarantined"),
        ({"__module__": "numpy", "__class__": "ndarray", "__loader__": "MethodNode"}, "quarantined"),
        ({"__module__": "numpy", "__class__": "ndarray", "__loader__": "NoSuchNode"}, "quarantined"),
        (
            {"__loader__": "FunctionNode", "__module__": "builtins", "__class__": "function",
             "content": {"module_path": "subprocess", "function": "run"}},
            "quarantined",
        ),
        ({"__module__": "their_code", "__class__": "Net", "__loader__": "ObjectNode"}, "needs_input"),
    ],
)  # fmt: skip
def test_a_skops_file_is_judged_by_the_names_in_its_schema(tmp_path: Path, node: dict[str, Any], code: str) -> None:
    path = skops_file(tmp_path / "model.skops", node)
    refusal = describe(path).refusal
    assert refusal is not None and refusal.code == code
    if code == "needs_input":
        assert "their_code.Net" in refusal.message
        assert describe(path, allowed_globals=("their_code.Net",)).refusal is None


def test_a_skops_schema_of_nonsense_or_without_end_ends_with_one_sentence(tmp_path: Path) -> None:
    for number, schema in enumerate((b"[]", b"{", b"[" * 200_000, b"\xff\xfe")):
        path = tmp_path / f"{number}.skops"
        with zipfile.ZipFile(path, "w") as target:
            target.writestr("schema.json", schema)
        refusal = describe(path).refusal
        assert refusal is not None and refusal.code == "model_failed", schema[:10]
        assert "schema of this skops file" in refusal.message
