from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from ingestion import sidecar
from ingestion.folder import drops
from ingestion.naming import dns_label
from schemas.job import ENDS, JobState

HERE = Path(__file__).resolve().parents[2] / "examples"
LIGHT = ("wine", "wine-weights", "hostile", "truncated", "empty", "notes", "model", "breast-cancer")


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"examples_{name}", HERE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def catalog() -> ModuleType:
    return _load("catalog")


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", list(sys.path))
    return _load("make")


def test_every_example_has_an_end_that_jobs_have_and_asks_for_its_own_name(catalog: ModuleType) -> None:
    for example in catalog.EXAMPLES:
        assert {JobState(state) for state in example.states} <= ENDS
        assert dns_label(example.path, folder="." not in example.path) == example.name


def test_every_example_has_a_maker(catalog: ModuleType, make: ModuleType) -> None:
    assert set(make.MAKERS) == set(catalog.EXPECTATIONS)


@pytest.mark.torch
@pytest.mark.sklearn
def test_the_light_examples_are_made_copied_and_found_as_drops(
    catalog: ModuleType, make: ModuleType, tmp_path: Path
) -> None:
    made, incoming = tmp_path / "made", tmp_path / "incoming"
    incoming.mkdir()
    make.make(made, LIGHT, marker=tmp_path / "marker", say=lambda line: None)
    placed = catalog.copy(made, incoming, LIGHT)
    assert sorted(p.name for p in placed) == sorted(a.relative for a in drops(incoming))
    with_sidecar = {p.name for p in placed if sidecar.read(p) is not None}
    assert with_sidecar == {"wine.pth", "breast-cancer.joblib"}
    assert str(tmp_path / "marker").encode() in (incoming / "hostile.pkl").read_bytes()
    assert not (tmp_path / "marker").exists()
    catalog.copy(made, incoming, LIGHT)
