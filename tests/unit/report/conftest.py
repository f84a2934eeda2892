"""Accounts of jobs to draw, and a browser to draw them in."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from schemas.account import JobAccount

HERE = Path(__file__).parent


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"report_{name}", HERE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def accounts() -> ModuleType:
    return load("accounts")


@pytest.fixture(scope="session")
def attacks() -> ModuleType:
    return load("hostile_account")


@pytest.fixture(scope="session")
def hostile(accounts: ModuleType, attacks: ModuleType) -> JobAccount:
    account = attacks.hostile(accounts.minilm())
    assert isinstance(account, JobAccount)
    return account


@pytest.fixture
def dump_dom(tmp_path: Path) -> Callable[[str], str]:
    """Return what a page's document is after a browser has loaded it and run whatever runs."""
    chromium = shutil.which("chromium")
    if chromium is None:
        message = "Chromium is not here: apt-get install chromium"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)

    def dump(html: str) -> str:
        page = tmp_path / "page.html"
        page.write_text(html, encoding="utf-8")
        command = [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri(),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        return done.stdout

    return dump
