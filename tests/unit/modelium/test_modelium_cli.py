from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from modelium.cli import cli
from schemas.errors import ToolchainMissing


@pytest.mark.parametrize("order", [("--home", "{home}", "jobs", "--json"), ("jobs", "--json", "--home", "{home}")])
def test_the_home_may_be_named_before_the_command_or_after_it(tmp_path: Path, order: tuple[str, ...]) -> None:
    home = tmp_path / "home"
    done = CliRunner().invoke(cli, [part.format(home=home) for part in order])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) is not None
    assert (home / "modelium.db").exists() or any(home.glob("*.db"))


def test_a_toolchain_that_is_not_installed_is_no_fault_of_ours() -> None:
    error = ToolchainMissing("The boosting toolchain is not installed.", hint="Run: make setup TOOLCHAINS=boosting")
    assert error.exit_code == 3


def test_kubernetes_prints_a_namespace_of_its_own_and_never_restricts_the_default_one(tmp_path: Path) -> None:
    def printed(**variables: str) -> subprocess.CompletedProcess[str]:
        order = [str(Path(sys.executable).parent / "modelium"), "--home", str(tmp_path), "kubernetes"]
        return subprocess.run(order, capture_output=True, text=True, env={**os.environ, **variables}, check=False)

    refused = printed()
    assert (refused.returncode, refused.stdout) == (2, "") and "MODELIUM_NAMESPACE" in refused.stderr
    given = printed(MODELIUM_NAMESPACE="models")
    assert given.returncode == 0, given.stderr
    assert {part["kind"] for part in yaml.safe_load_all(given.stdout)} >= {"Namespace", "NetworkPolicy", "Role"}


ENDS = """
import atexit, sys, threading, time
sys.argv = ["modelium", "--version"]
atexit.register(print, "what was registered is done")
{more}
from modelium.cli import main
main()
"""


@pytest.mark.parametrize(
    "more", ["", "threading.Thread(target=lambda: (time.sleep(0.3), print('a thread has ended'))).start()"]
)
def test_a_command_ends_with_everything_done_and_written(more: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDS.format(more=more)], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    said = done.stdout.splitlines()
    assert said[0].startswith("modelium, version")
    assert said[1:] == [*(["a thread has ended"] if more else []), "what was registered is done"]
