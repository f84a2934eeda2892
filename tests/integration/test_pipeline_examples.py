"""Every example end to end through the running pipeline, and every deployed entry in a real Triton."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytestmark = [pytest.mark.sandbox, pytest.mark.torch, pytest.mark.sklearn]
CHECKOUT = Path(__file__).parents[2]
MODELIUM = Path(sys.executable).parent / "modelium"
QUICK = {"MODELIUM_MEASURE_ROUNDS": "5", "MODELIUM_MEASURE_BUDGET_S": "5"}


def _catalog() -> ModuleType:
    spec = importlib.util.spec_from_file_location("example_catalog", CHECKOUT / "examples" / "catalog.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


CATALOG = _catalog()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home where every example was dropped into the folder that a running ``modelium up`` watches."""
    folder = tmp_path_factory.mktemp("examples")
    home, made, marker = folder / "home", folder / "made", folder / "the-hostile-pickle-ran"
    make = [sys.executable, "-P", CHECKOUT / "examples" / "make.py", made, "--marker", marker]
    subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
    environment = os.environ | QUICK
    up = subprocess.Popen([MODELIUM, "--home", home, "up", "--json"], env=environment, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not (home / "incoming").is_dir():
            assert up.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        CATALOG.copy(made, home / "incoming")
        follow = ["jobs", "--follow", "--expect", str(len(CATALOG.EXAMPLES))]
        subprocess.run([MODELIUM, "--home", home, *follow], check=True, timeout=900, capture_output=True)
    finally:
        up.terminate()
        up.wait(timeout=60)
    assert not marker.exists(), "the hostile pickle was executed"
    return home


@pytest.fixture(scope="module")
def accounts(home: Path) -> dict[str, Any]:
    """Name of the example to its account."""
    listed = subprocess.run([MODELIUM, "--home", home, "jobs", "--json"], capture_output=True, check=True)
    found = {}
    for job in json.loads(listed.stdout)["jobs"]:
        shown = subprocess.run([MODELIUM, "--home", home, "show", job["id"], "--json"], capture_output=True, check=True)
        file = job["uri"].rsplit("/", 1)[-1]
        found[next(e.name for e in CATALOG.EXAMPLES if e.path == file)] = json.loads(shown.stdout)
    return found


@pytest.mark.parametrize("name", CATALOG.EXPECTATIONS)
def test_an_example_ends_as_it_should(accounts: dict[str, Any], name: str) -> None:
    account = accounts[name]
    assert account["state"] in CATALOG.EXPECTATIONS[name], account["reason"]
    if account["state"] != "deployed":
        assert account["reason"] and "\n" not in account["reason"] and "Traceback" not in account["reason"]
    assert Path(account["report"]).is_file()


def test_every_job_has_one_end_and_a_legal_history(accounts: dict[str, Any]) -> None:
    for account in accounts.values():
        after = [t["after"] for t in account["history"]]
        assert after[0] == "received" and after[-1] == account["state"]
        assert len(after) == len(set(after))


def test_no_step_ended_for_a_reason_of_ours(accounts: dict[str, Any]) -> None:
    ours = {"internal", "sandbox_crashed", "no_isolation", "toolchain_missing"}
    steps = [step for account in accounts.values() for step in account["steps"]]
    assert [s["error"] for s in steps if s["error"] and s["error"]["code"] in ours] == []


def test_every_step_ran_in_a_sandbox_and_says_which_with_which_versions(accounts: dict[str, Any]) -> None:
    for account in accounts.values():
        for step in account["steps"]:
            if not step["cached_from"] and step["state"] == "succeeded":
                assert step["isolation"]["backend"] == "bubblewrap" and step["isolation"]["no_network"]
                assert step["versions"]["python"]
                assert step["usage"]["wall_s"] > 0


def test_accuracy_before_and_after_is_that_of_real_samples(accounts: dict[str, Any]) -> None:
    account = accounts["digits-cnn"]
    winner = next(c for c in account["candidates"] if c["id"] == account["winner"])
    assert account["reference"]["accuracy"] > 0.95
    assert winner["parity"]["accuracy"] == pytest.approx(account["reference"]["accuracy"], abs=0.01)
    assert winner["parity"]["real_samples"]


def test_a_lossy_candidate_is_shown_and_wins_only_where_the_target_allows_it(accounts: dict[str, Any]) -> None:
    account = accounts["minilm"]
    int8 = next(c for c in account["candidates"] if c["precision"] == "int8")
    assert int8["size_bytes"] < account["artifact"]["size_bytes"] / 3
    verdict = next(v for v in account["verdict"]["contenders"] if v["contender"] == int8["id"])
    assert verdict["outcome"] in {"not_allowed", "failed"}
    assert account["winner"] != int8["id"]


def test_a_fixed_batch_is_served_without_batching(accounts: dict[str, Any]) -> None:
    assert accounts["fixed-batch"]["deployment"]["deployment"]["spec"]["max_batch_size"] == 0
    assert accounts["resnet50"]["deployment"]["deployment"]["spec"]["max_batch_size"] >= 8


def test_nothing_of_the_run_is_left_behind(home: Path, accounts: dict[str, Any]) -> None:
    assert accounts
    assert list((home / "workspaces").iterdir()) == []


@pytest.mark.triton
def test_every_deployed_entry_loads_in_triton_and_answers_what_onnxruntime_answers(
    home: Path, accounts: dict[str, Any], start_triton: Callable[..., Any], tmp_path: Path
) -> None:
    repository = home / "model_repository"
    published = {n: a["deployment"] for n, a in accounts.items() if a["deployment"]}
    deployed = {n: d for n, d in published.items() if Path(d["entry"]).parent == repository}
    assert published.keys() - deployed.keys() == {"tiny-llama"}
    assert len(deployed) == 7
    server = start_triton(repository)
    for name, deployment in deployed.items():
        server.wait_until(lambda d=deployment: server.is_ready(d["name"], d["version"]))
        entry = Path(deployment["entry"]) / str(deployment["version"]) / "model.onnx"
        script = tmp_path / f"{name}.py"
        script.write_text(_ASK.format(url=server.url.removeprefix("http://"), deployment=deployment, model=str(entry)))
        done = subprocess.run([server.client_python, script], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{name}: {done.stderr[-2000:]}"
        # The snippet of the report has to run as it is printed.
        snippet = deployment["next_steps"]["python client"].replace(
            "localhost:8000", server.url.removeprefix("http://")
        )
        script.write_text(snippet)
        done = subprocess.run([server.client_python, script], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{name}: {done.stderr[-2000:]}"


_ASK = """
import numpy as np, onnxruntime as ort, tritonclient.http as http
deployment = {deployment!r}
spec = deployment["deployment"]["spec"]
types = {{"float32": (np.float32, "FP32"), "int64": (np.int64, "INT64"), "float64": (np.float64, "FP64")}}
session = ort.InferenceSession({model!r}, providers=["CPUExecutionProvider"])
client = http.InferenceServerClient({url!r}, network_timeout=60, connection_timeout=60)
rng = np.random.default_rng(1)
for rows in (1, 3) if spec["max_batch_size"] else (1,):
    sizes = dict(spec["example_axes"], batch=rows)
    feeds, inputs = {{}}, []
    for tensor in spec["inputs"]:
        shape = [d if isinstance(d, int) else sizes[d] for d in tensor["shape"]]
        dtype, name = types[tensor["dtype"]]
        array = rng.integers(0, 2, shape) if dtype == np.int64 else rng.standard_normal(shape)
        feeds[tensor["name"]] = array.astype(dtype)
        asked = http.InferInput(tensor["name"], shape, name)
        asked.set_data_from_numpy(feeds[tensor["name"]])
        inputs.append(asked)
    answer = client.infer(deployment["name"], inputs, model_version=str(deployment["version"]))
    for name, expected in zip([o.name for o in session.get_outputs()], session.run(None, feeds)):
        got = answer.as_numpy(name)
        # A scalar a row is served as one value a row: Triton has no other way to write it with a batch.
        served = expected.shape if expected.ndim > 1 or not spec["max_batch_size"] else (rows, 1)
        assert got.shape == served, (name, got.shape, served)
        np.testing.assert_allclose(got.reshape(expected.shape), expected, rtol=1e-4, atol=1e-5, err_msg=name)
"""
