"""What honest libraries write is clean, in every kind they write it."""

from __future__ import annotations

import importlib.util
import pickle
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from analyzer.security import scan


@pytest.fixture(scope="module")
def freezer() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "freeze_allowed_globals", Path(__file__).with_name("freeze_allowed_globals.py")
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def said(path: Path) -> list[tuple[str, str, str]]:
    return [(f.code, f.subject, f.message) for f in scan(path)]


@pytest.mark.sklearn
def test_every_fitted_estimator_of_scikit_learn_is_clean(tmp_path: Path, freezer: ModuleType) -> None:
    joblib = pytest.importorskip("joblib")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted: dict[str, Any] = freezer.fitted_estimators()
        assert len(fitted) > 180
        path = tmp_path / "model.bin"
        for name, estimator in fitted.items():
            for protocol in (0, 2, 5):
                path.write_bytes(pickle.dumps(estimator, protocol))
                assert said(path) == [], (name, protocol)
            for compress in (0, ("zlib", 3)):
                joblib.dump(estimator, path, compress=compress)
                assert said(path) == [], (name, compress)


@pytest.mark.sklearn
@pytest.mark.parametrize("compress", [0, ("zlib", 3), ("gzip", 3), ("bz2", 3), ("lzma", 3), ("xz", 3)])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pipeline_is_clean_in_every_compression_of_joblib(tmp_path: Path, compress: Any, protocol: int) -> None:
    joblib = pytest.importorskip("joblib")
    np = pytest.importorskip("numpy")
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

    x = np.array([[i, "ab"[i % 2]] for i in range(40)], dtype=object)
    pipeline = make_pipeline(
        make_column_transformer(
            (make_pipeline(FunctionTransformer(np.log1p), StandardScaler()), slice(0, 1)), (OneHotEncoder(), [1])
        ),
        GridSearchCV(RandomForestClassifier(n_estimators=3), {"max_depth": [2, 3]}, cv=2, scoring="f1"),
    )
    pipeline.named_steps["columntransformer"].transformers[0][1].steps[0][1].set_params(func=np.float64)
    pipeline.fit(x, np.arange(40) % 2)
    path = tmp_path / "model.joblib"
    joblib.dump(pipeline, path, compress=compress, protocol=protocol)
    assert said(path) == []


@pytest.mark.sklearn
@pytest.mark.parametrize("splitter", [None, 2, "ShuffleSplit", "TimeSeriesSplit", "RepeatedKFold"])
def test_a_search_is_clean_however_it_split_the_rows(tmp_path: Path, splitter: str | int | None) -> None:
    joblib = pytest.importorskip("joblib")
    np = pytest.importorskip("numpy")
    from sklearn import model_selection
    from sklearn.linear_model import Ridge

    cv = getattr(model_selection, splitter)() if isinstance(splitter, str) else splitter
    x = np.random.RandomState(0).rand(60, 3)
    joblib.dump(model_selection.GridSearchCV(Ridge(), {"alpha": [1, 2]}, cv=cv).fit(x, x[:, 0]), tmp_path / "a.joblib")
    assert said(tmp_path / "a.joblib") == []


@pytest.mark.sklearn
def test_arrays_of_every_kind_are_clean_and_followed_to_the_end(tmp_path: Path) -> None:
    joblib = pytest.importorskip("joblib")
    np = pytest.importorskip("numpy")
    kinds = [
        np.arange(5),
        np.zeros((3, 0)),
        np.array(3.0),
        np.array(["a", "bcd"]),
        np.array([b"x"]),
        np.array([True]),
        np.array([1, "a", None], dtype=object),
        np.zeros(3, dtype=[("a", "f8"), ("b", "i4", (2,))]),
        np.zeros(2, dtype=">f4"),
        np.zeros(2, dtype=[("o", object), ("n", "i8")]),
        np.array(["2020-01-01"], dtype="M8[D]"),
        np.asfortranarray(np.ones((2, 3))),
        np.ma.masked_array([1, 2], [True, False]),
        np.float64(3),
        np.random.RandomState(0),
        np.random.default_rng(0),
        np.zeros(3, np.complex128),
        np.zeros(2, np.float16),
        np.frombuffer(bytes(range(256)) * 9, "u1"),
    ]
    for index, kind in enumerate(kinds):
        for protocol in (2, 4, 5):
            path = tmp_path / "array.joblib"
            joblib.dump({"before": [kind], "after": kind}, path, protocol=protocol)
            assert said(path) == [], (index, protocol)


@pytest.mark.torch
def test_every_kind_of_torch_file_is_clean(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.nn.Sequential(
            torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.GELU(), torch.nn.Flatten(), torch.nn.LSTM(8, 4)
        ).eval()
        plain = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.BatchNorm1d(4)).eval()
        optimizer = torch.optim.Adam(plain.parameters())
        plain(torch.ones(2, 3)).sum().backward()
        optimizer.step()
        checkpoint = {
            "model": plain.state_dict(),
            "optimizer": optimizer.state_dict(),
            "epoch": 3,
            "device": torch.device("cpu"),
        }
        odd = {
            "bf16": torch.zeros(2, dtype=torch.bfloat16),
            "sparse": torch.eye(3).to_sparse(),
            "bool": torch.ones(2, dtype=torch.bool),
            "quantised": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
            "parameter": torch.nn.Parameter(torch.ones(1)),
            "size": torch.Size([1]),
            "dtype": torch.float16,
            "view": torch.arange(6).view(2, 3).t(),
            "complex": torch.zeros(1, dtype=torch.complex64),
        }
        for index, thing in enumerate(
            (model.state_dict(), plain.state_dict(), checkpoint, odd, model, [torch.ones(3)])
        ):
            for zipped in (True, False):
                torch.save(thing, tmp_path / "model.pt", _use_new_zipfile_serialization=zipped)
                assert said(tmp_path / "model.pt") == [], (index, zipped)
        torch.jit.script(plain).save(str(tmp_path / "script.pt"))
        assert said(tmp_path / "script.pt") == []
        torch.jit.trace(model[:3], torch.ones(1, 1, 8, 8)).save(str(tmp_path / "traced.pt"))
        assert said(tmp_path / "traced.pt") == []
        torch.export.save(torch.export.export(plain, (torch.ones(2, 3),)), tmp_path / "program.pt2")
        assert said(tmp_path / "program.pt2") == []


@pytest.mark.torch
def test_a_model_of_a_persons_own_class_is_asked_about_by_name(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    module = ModuleType("their_model")
    exec("import torch\nclass Net(torch.nn.Linear): pass", module.__dict__)
    sys.modules["their_model"] = module
    try:
        torch.save(module.Net(2, 2), tmp_path / "model.pt")
    finally:
        del sys.modules["their_model"]
    assert [f.subject for f in scan(tmp_path / "model.pt")] == ["their_model.Net"]
    lifted = scan(tmp_path / "model.pt", allowed_globals=("their_model.Net",))
    assert [f.severity.value for f in lifted] == ["info"]


@pytest.mark.sklearn
@pytest.mark.torch
def test_the_frozen_list_has_what_the_installed_libraries_ask_for(freezer: ModuleType) -> None:
    from analyzer.pickle_allowlist import Judgement, allowed, judge
    from analyzer.traced_values import Global

    now = {pair for names in freezer.groups().values() for pair in names}
    assert now <= allowed(), sorted(now - allowed())
    roots = {module.split(".")[0] for module, _ in allowed()}
    assert roots <= {
        "builtins",
        "collections",
        "copyreg",
        "datetime",
        "decimal",
        "fractions",
        "uuid",
        "pathlib",
        "types",
        "_codecs",
        "torch",
        "numpy",
        "scipy",
        "joblib",
        "sklearn",
        "functools",
        "xgboost",
        "lightgbm",
        "catboost",
    }
    for module, name in allowed():
        assert "." not in name, (module, name)
        assert judge(Global(module, name, 0, 4)) is Judgement.ALLOWED
