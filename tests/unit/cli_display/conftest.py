"""The report's accounts, drawn in a terminal here."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

REPORT = Path(__file__).parent.parent / "report"


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"display_{name}", REPORT / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def accounts() -> ModuleType:
    return _load("accounts")


@pytest.fixture(scope="session")
def attacks() -> ModuleType:
    return _load("hostile_account")
