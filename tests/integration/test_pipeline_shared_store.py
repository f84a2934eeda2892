"""Two machines, as two homes, on one PostgreSQL and one bucket: what one made serves the other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelium import step_runs
from modelium.context import Context
from modelium.db import Database, metadata
from modelium.settings import Settings
from schemas.step_run import StepRun

pytestmark = [pytest.mark.sandbox, pytest.mark.postgres, pytest.mark.s3]
MODELIUM = Path(sys.executable).parent / "modelium"


@pytest.fixture
def shared(postgres_url: str, cloud: Any) -> dict[str, str]:
    """The variables that both machines have in common; the database is empty."""
    database = Database(postgres_url)
    with database.write() as connection:
        connection.exec_driver_sql("DROP SCHEMA public CASCADE")
        connection.exec_driver_sql("CREATE SCHEMA public")
    database.engine.dispose()
    return {
        "MODELIUM_DATABASE_URL": postgres_url,
        "MODELIUM_STORE_URL": cloud.url,
        "MODELIUM_S3_ENDPOINT_URL": cloud.endpoint_url,
        "MODELIUM_MEASURE_ROUNDS": "5",
        "MODELIUM_MEASURE_BUDGET_S": "3",
    }


def network() -> bytes:
    seeded = numpy.random.default_rng(7)
    weights = [
        numpy_helper.from_array(seeded.standard_normal(shape).astype("float32"), name)
        for name, shape in (("w", (64, 32)), ("b", (32,)))
    ]
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 32])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


def convert(home: Path, shared: dict[str, str], model: Path) -> list[StepRun]:
    """Convert on the machine whose home that is; return the job's steps."""
    argv = [MODELIUM, "--home", home, "convert", model, "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, env=os.environ | shared, timeout=300)
    assert done.returncode == 0, done.stderr + done.stdout
    job = json.loads(done.stdout)["job"]
    chosen = {name.removeprefix("MODELIUM_").lower(): value for name, value in shared.items()}
    context = Context(Settings(home=home, **chosen))  # type: ignore[arg-type]
    return step_runs.of_job(context.database, job["id"])


def test_what_one_machine_made_is_reused_and_fetched_by_the_other(
    shared: dict[str, str], cloud: Any, tmp_path: Path
) -> None:
    (tmp_path / "one.onnx").write_bytes(network())
    (tmp_path / "two.onnx").write_bytes(network())
    first, second = tmp_path / "first", tmp_path / "second"
    made = convert(first, shared, tmp_path / "one.onnx")
    assert made and not [run.kind for run in made if run.cached_from]
    stored = {sha256 for run in made for sha256 in run.outputs.values()}
    assert stored and {f"manifests/{sha256}.json" for sha256 in stored} <= set(cloud.objects("manifests"))
    reused = convert(second, shared, tmp_path / "two.onnx")
    given = [sorted((run.kind, sorted(run.outputs.items())) for run in runs) for runs in (made, reused)]
    assert given[0] == given[1]
    # A measurement that was not steady, as on a busy machine, is taken anew wherever it is.
    assert {run.kind for run in reused if run.cached_from is None} <= {"measure"}
    served = [next(home.glob("model_repository/*/1/model.onnx")) for home in (first, second)]
    assert served[0].read_bytes() == served[1].read_bytes()
    # The credentials are in the variables of both, and nowhere else.
    secret = os.environ["AWS_SECRET_ACCESS_KEY"].encode()
    kept = [p for home in (first, second) for p in home.rglob("*") if p.is_file()]
    assert kept and not [p for p in kept if secret in p.read_bytes()]
    with Database(shared["MODELIUM_DATABASE_URL"]).read() as connection:
        rows = [row for table in metadata.sorted_tables for row in connection.execute(table.select())]
    assert rows and secret.decode() not in str(rows)
