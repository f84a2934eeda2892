"""A whole job whose steps run in Docker containers, through the real command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import joblib
import pytest
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

pytestmark = [pytest.mark.docker, pytest.mark.sklearn, pytest.mark.timeout(300)]


def test_a_pickle_is_converted_and_deployed_by_steps_in_containers(docker_engine, tmp_path):
    data, labels = load_iris(return_X_y=True)
    model = tmp_path / "iris.joblib"
    joblib.dump(LogisticRegression(max_iter=500).fit(data, labels), model)
    settings = {
        "MODELIUM_SANDBOX": "docker",
        "MODELIUM_DOCKER_HOST": docker_engine.host,
        "MODELIUM_MEASURE_BUDGET_S": "2",
        "MODELIUM_REQUIRE_ISOLATION": json.dumps({"pickle": ["no_network", "own_user", "seccomp", "memory"]}),
    }
    done = subprocess.run(
        [Path(sys.executable).parent / "modelium", "--home", tmp_path / "home", "convert", model, "--json"],
        capture_output=True, text=True, env=os.environ | settings,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout, done.stderr)
    accounts = json.loads(done.stdout.strip())
    steps = (accounts[0] if isinstance(accounts, list) else accounts)["steps"]
    assert {step["isolation"]["backend"] for step in steps if step["isolation"]} == {"docker"}
    assert all(step["isolation"]["image"].startswith("sha256:") for step in steps if step["isolation"])
    assert any(step["usage"]["warm"] for step in steps if step["usage"])
    assert docker_engine.containers() == []
    assert not list((tmp_path / "home").rglob("step-*"))
