"""The running pipeline against kills, double drops and people: whatever happens, a job ends once, in one state."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
import sqlalchemy

from modelium import jobs, step_runs
from modelium.context import Context
from modelium.db import Database
from modelium.home import Home
from modelium.settings import Settings
from modelium.supervisor import STOP_S

pytestmark = [pytest.mark.sandbox, pytest.mark.torch]
DONE = ("deployed", "unchanged")
MODELIUM = Path(sys.executable).parent / "modelium"
QUICK = {"MODELIUM_MEASURE_ROUNDS": "5", "MODELIUM_MEASURE_BUDGET_S": "3", "MODELIUM_LEASE_S": "4"}


def modelium(home: Path, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [str(part) for part in (MODELIUM, "--home", home, *arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | QUICK, timeout=300)
    assert not check or done.returncode == 0, done.stderr + done.stdout
    return done


def shown(home: Path, *arguments: object) -> Any:
    return json.loads(modelium(home, *arguments, "--json", check=False).stdout)


@contextmanager
def running(home: Path, folder: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A ``modelium up`` on ``home``, started in ``folder``."""
    command = [MODELIUM, "--home", home, "up", "--json"]
    up = subprocess.Popen(command, cwd=folder, env=os.environ | QUICK, stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: up.poll() is not None or Home(home).is_up(), 90)
        assert up.poll() is None, "modelium up ended before it was up"
        yield up
    finally:
        up.terminate()
        up.wait(timeout=60)


def wait_for(condition: Any, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def descendants(pid: int) -> list[psutil.Process]:
    return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]


def gone(processes: list[psutil.Process]) -> bool:
    return not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def job_states(home: Path) -> list[str]:
    return [job["state"] for job in shown(home, "jobs")["jobs"]]


# What is waited for is read in this process: a command every moment would take a core from the pipeline.


@contextmanager
def database_of(home: Path) -> Iterator[Database]:
    database = Context(Settings(home=home)).database
    yield database
    database.engine.dispose()


def states_now(home: Path) -> list[str]:
    with database_of(home) as database:
        return [job.state.value for job in jobs.everything(database)]


def has_begun(home: Path, name: str, kind: str) -> bool:
    with database_of(home) as database:
        job = jobs.find(database, name)
        return any(run.kind == kind for run in step_runs.of_job(database, job.id, job.attempt))


def ended(home: Path, count: int = 1) -> bool:
    states = states_now(home)
    return len(states) == count and all(s in {"deployed", "unchanged", "failed", "cancelled"} for s in states)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TorchScript model: the seconds its steps take to import torch are time enough for a kill."""
    path = tmp_path_factory.mktemp("model") / "net.pt"
    code = f"""
import torch
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
torch.jit.trace(net.eval(), torch.randn(2, 64)).save({str(path)!r})
"""
    subprocess.run([sys.executable, "-P", "-W", "ignore", "-c", code], check=True)
    return path


def write_onnx(path: Path, seed: int) -> Path:
    """Write a small ONNX network; its steps import no torch."""
    code = f"""
import numpy as np, onnx
from onnx import TensorProto, helper, numpy_helper
rng = np.random.default_rng({seed})
weights = [numpy_helper.from_array(rng.standard_normal((16, 16)).astype("float32"), f"w{{n}}") for n in range(3)]
nodes = [helper.make_node("MatMul", [f"x{{n}}", f"w{{n}}"], [f"x{{n + 1}}"]) for n in range(3)]
specs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 16]) for name in ("x0", "x3")]
graph = helper.make_graph(nodes, "g", specs[:1], specs[1:], weights)
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), {str(path)!r})
"""
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
    return path


def test_a_worker_killed_in_mid_conversion_leaves_the_job_done_once(tmp_path: Path, network: Path) -> None:
    home = tmp_path / "home"
    with running(home) as up:
        shutil.copy(network, home / "incoming" / "net.pt")
        wait_for(lambda: states_now(home) == ["executing"], 180)
        name = shown(home, "jobs")["jobs"][0]["id"]
        wait_for(lambda: has_begun(home, name, "reference"), 90)
        workers = [p for p in psutil.Process(up.pid).children() if "general@modelium" in " ".join(p.cmdline())]
        assert len(workers) == 1
        family = descendants(workers[0].pid)
        for process in family:
            if process.is_running():
                process.send_signal(signal.SIGKILL)
        wait_for(lambda: gone(family), 60)
        wait_for(lambda: ended(home), 300)
        account = shown(home, "show", name)
    assert account["state"] == "deployed", account["reason"]
    assert account["job"]["attempt"] == 1
    assert [d["version"] for d in shown(home, "deployments", "--all")["deployments"]] == [1]
    after = [t["after"] for t in account["history"]]
    assert after == ["received", "analyzing", "planning", "executing", "measuring", "deploying", "deployed"]
    assert list((home / "workspaces").iterdir()) == []


def test_everything_ends_with_its_owner_even_when_that_is_killed(tmp_path: Path, network: Path) -> None:
    home = tmp_path / "home"
    with running(home) as up:
        shutil.copy(network, home / "incoming" / "net.pt")
        wait_for(lambda: states_now(home) == ["executing"], 180)
        family = descendants(up.pid)
        assert len(family) >= 5
        up.kill()
        wait_for(lambda: gone(family), 60)
        up.wait(timeout=10)
    with running(home):
        wait_for(lambda: ended(home), 300)
    assert job_states(home) == ["deployed"]


def test_a_stage_is_given_back_at_once_when_up_is_stopped(tmp_path: Path, network: Path) -> None:
    home = tmp_path / "home"
    with running(home) as up:
        shutil.copy(network, home / "incoming" / "net.pt")
        wait_for(lambda: states_now(home), 60)
        name = shown(home, "jobs")["jobs"][0]["id"]
        wait_for(lambda: has_begun(home, name, "probe"), 90)
        began = time.monotonic()
        up.terminate()
        up.wait(timeout=60)
        stopped_s = time.monotonic() - began
        states = [(s["kind"], s["state"]) for s in shown(home, "logs", name)["steps"]]
    assert job_states(home) == ["analyzing"] and states[-1] == ("probe", "cancelled")
    assert stopped_s < STOP_S, "the worker had to be killed"
    with sqlite3.connect(home / "modelium.db") as database:
        assert database.execute("SELECT deliveries, lease_owner FROM jobs").fetchall() == [(0, None)]


def test_two_equal_drops_make_two_jobs_and_one_conversion(tmp_path: Path, network: Path) -> None:
    home = tmp_path / "home"
    with running(home):
        for name in ("one.pt", "two.pt"):
            shutil.copy(network, home / "incoming" / name)
        wait_for(lambda: ended(home, 2), 400)
    assert job_states(home) == ["deployed", "deployed"]
    steps = [s for job in shown(home, "jobs")["jobs"] for s in shown(home, "logs", job["id"])["steps"]]
    for kind in ("analyze", "probe", "reference", "torchscript_onnx", "onnx_optimize"):
        executed = {s["id"] for s in steps if s["kind"] == kind and not s["cached_from"]}
        assert len(executed) == 1, kind
    # A measurement that a busy machine disturbed is made again: once or twice, never none.
    measured = [s for s in steps if s["kind"] == "measure"]
    assert len(measured) == 2 and any(not s["cached_from"] for s in measured)
    assert all(s["made_at"] for s in measured if s["cached_from"])
    assert {d["name"] for d in shown(home, "deployments")["deployments"]} == {"one", "two"}


def test_a_job_is_cancelled_in_mid_stage(tmp_path: Path, network: Path) -> None:
    home = tmp_path / "home"
    with running(home):
        shutil.copy(network, home / "incoming" / "net.pt")
        wait_for(lambda: states_now(home) == ["executing"], 180)
        modelium(home, "cancel", "net")
        wait_for(lambda: ended(home), 90)
    assert job_states(home) == ["cancelled"]
    assert list((home / "workspaces").iterdir()) == []


def test_convert_beside_a_running_up_hands_in_and_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    with running(home):
        wait_for(Home(home).reception.exists, 90)
        monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
        done = modelium(home, "convert", write_onnx(tmp_path / "net.onnx", 0), "--json")
        monkeypatch.delenv("PYTHONPROFILEIMPORTTIME")
    account = json.loads(done.stdout)
    assert "pydantic" in done.stderr
    assert "sqlalchemy" not in done.stderr  # what stores and records is `modelium up`
    assert account["state"] in DONE
    assert "net" in {d["name"] for d in shown(home, "deployments")["deployments"]}
    # Told to whoever follows, by the process that ended it.
    assert Home(home).ended.stat().st_mtime > datetime.fromisoformat(account["steps"][-1]["ended_at"]).timestamp()


def test_the_life_of_a_deployment(tmp_path: Path) -> None:
    """Convert, convert other bytes under the same name, roll back, try, collect, undeploy."""
    home, model = tmp_path / "home", tmp_path / "net.onnx"
    write_onnx(model, 0)
    assert shown(home, "convert", model)["deployment"]["version"] == 1
    again = shown(home, "convert", model)
    assert (again["deployment"]["version"], again["job"]["attempt"]) == (1, 1)
    second = shown(home, "convert", write_onnx(model, 1))
    assert second["state"] in DONE and second["deployment"]["version"] == 2, second["reason"]
    assert shown(home, "rollback", "net")["version"] == 1
    assert "versions: 1" in (home / "model_repository" / "net" / "config.pbtxt").read_text()
    tried = shown(home, "try", "net", "--rows", "2")
    assert next(iter(tried["shapes"].values()))[0] == 2
    assert shown(home, "gc", "--older-than-days", "0")["artifacts"] > 0
    assert shown(home, "try", "net")["latency_ms"] > 0
    assert modelium(home, "report", "net").stdout.strip().endswith("index.html")
    modelium(home, "undeploy", "net")
    assert not (home / "model_repository" / "net").exists()
    assert modelium(home, "try", "net", check=False).returncode == 2


def test_convert_prints_one_json_document_and_tells_its_end_by_the_exit_status(tmp_path: Path) -> None:
    home, folder = tmp_path / "home", tmp_path / "models"
    folder.mkdir()
    (folder / "empty.onnx").touch()
    (folder / "words.onnx").write_text("this is no model\n")
    one = modelium(home, "convert", folder / "empty.onnx", "--json", check=False)
    account = json.loads(one.stdout)
    assert (one.returncode, account["state"]) == (3, "failed")
    assert account["reason"] and "\n" not in account["reason"]
    assert {"job_id", "descriptor", "plan", "candidates", "winner", "deployment"} <= set(account)
    both = modelium(home, "convert", folder, "--json", check=False)
    assert both.returncode == 3 and len(json.loads(both.stdout)["jobs"]) == 2
    absent = modelium(home, "convert", folder / "nothing.pt", "--json", check=False)
    assert absent.returncode == 2 and json.loads(absent.stdout)["error"]["code"] == "not_found"
    assert "Traceback" not in absent.stderr


def test_a_plan_converts_and_keeps_nothing(tmp_path: Path, network: Path) -> None:
    home = tmp_path / "home"
    planned = shown(home, "plan", network)
    assert [c["id"] for c in planned["plan"]["candidates"]][:1] == ["onnx"]
    assert all(s["reason"] for c in planned["plan"]["candidates"] for s in c["steps"])
    assert job_states(home) == []
    assert not [p for p in home.iterdir() if p.name.startswith("plan-")]


@pytest.mark.timeout(600)
def test_a_model_that_converts_at_one_size_only_is_served_at_that_size(tmp_path: Path) -> None:
    from deployer.config_text import parse_config

    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "net.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.body = nn.Linear(4, 4)\n\n"
        "    def forward(self, x):\n        total = torch.zeros_like(x[:, 0])\n"
        # A loop over a length is written out as often as it was long.
        "        for place in range(x.shape[1]):\n            total = self.body(total + x[:, place]).tanh()\n"
        "        return total\n"
    )
    save = "import sys, torch; sys.path[:0] = sys.argv[1:]; import net; torch.save(net.Net().state_dict(), 'net.pt')"
    subprocess.run([sys.executable, "-c", save, folder], cwd=folder, check=True, timeout=120)
    (folder / "net.pt.modelium.yaml").write_text(
        "module: {file: net.py, class_name: Net}\ninputs:\n- {name: x, dtype: float32, shape: [batch, items, 4]}\n"
    )
    home = tmp_path / "home"
    account = json.loads(modelium(home, "convert", folder / "net.pt", "--json").stdout)
    assert account["state"] == "deployed"
    (fixed,) = (note for note in account["descriptor"]["notes"] if "fixed sizes" in note)
    assert "items at 16" in fixed
    assert account["reference"]["cases"], "the original was asked again at these sizes"
    config = parse_config((home / "model_repository" / "net" / "config.pbtxt").read_text())
    assert list(config.input[0].dims) == [16, 4]
    assert config.max_batch_size > 1, "the batch stays open"


def test_nothing_of_the_folder_that_up_is_started_in_is_run(tmp_path: Path) -> None:
    home, folder = tmp_path / "home", tmp_path / "downloads"
    folder.mkdir()
    for name in ("modelium", "celery", "executor", "random"):
        (folder / f"{name}.py").write_text("open('was-run', 'w'); raise SystemExit('run')")
    with running(home, folder):
        write_onnx(home / "incoming" / "net.onnx", 0)
        wait_for(lambda: ended(home), 90)
    assert job_states(home)[0] in DONE
    assert not (folder / "was-run").exists()


def test_a_second_up_on_the_same_home_is_refused(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with running(home):
        assert shown(home, "status")["up"]
        second = modelium(home, "up", check=False)
    assert second.returncode == 2 and "runs on" in second.stderr


def test_two_names_that_collide_are_refused_with_the_way_out(tmp_path: Path) -> None:
    home = tmp_path / "home"
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_onnx(tmp_path / folder / "net.onnx", 0)
    assert shown(home, "convert", tmp_path / "a" / "net.onnx")["state"] in DONE
    second = modelium(home, "convert", tmp_path / "b" / "net.onnx", "--json", check=False)
    account = json.loads(second.stdout)
    assert (second.returncode, account["state"]) == (5, "needs_input")
    assert "name:" in account["hint"]


@pytest.mark.redis
@pytest.mark.postgres
def test_the_same_pipeline_runs_on_a_redis_and_a_postgresql_of_its_own(
    tmp_path: Path, postgres_url: str, redis_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    socket = tmp_path / "redis.sock"
    redis = subprocess.Popen(
        [redis_server, "--port", "0", "--unixsocket", socket, "--dir", tmp_path, "--save", ""],
        stdout=subprocess.DEVNULL,
    )
    database = f"{postgres_url.rsplit('/', 1)[0]}/service"
    engine = sqlalchemy.create_engine(postgres_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE DATABASE service")
    engine.dispose()
    monkeypatch.setenv("MODELIUM_DATABASE_URL", database)
    monkeypatch.setenv("MODELIUM_BROKER_URL", f"redis+socket://{socket}")
    home = tmp_path / "home"
    try:
        wait_for(socket.exists, 60)
        with running(home):
            write_onnx(home / "incoming" / "net.onnx", 0)
            wait_for(lambda: ended(home), 300)
        assert job_states(home)[0] in DONE
        assert not (home / "modelium.db").exists() and not list((home / "broker").iterdir())
    finally:
        redis.terminate()
        redis.wait(timeout=10)
