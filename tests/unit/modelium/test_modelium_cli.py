from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from modelium.cli import cli


@pytest.mark.parametrize("order", [("--home", "{home}", "jobs", "--json"), ("jobs", "--json", "--home", "{home}")])
def test_the_home_may_be_named_before_the_command_or_after_it(tmp_path: Path, order: tuple[str, ...]) -> None:
    home = tmp_path / "home"
    done = CliRunner().invoke(cli, [part.format(home=home) for part in order])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) is not None
    assert (home / "modelium.db").exists() or any(home.glob("*.db"))
