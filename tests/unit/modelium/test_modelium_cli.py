from __future__ import annotations

import json
from pathlib import Path

import pytest
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
