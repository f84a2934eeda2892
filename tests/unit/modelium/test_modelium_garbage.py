from __future__ import annotations

from pathlib import Path

from ingestion.drops import drops
from modelium import db, jobs, step_runs
from modelium.context import Context
from modelium.garbage import collect
from modelium.submit import submit
from schemas.step_run import StepRun, StepRunState


def dropped(context: Context, folder: Path, text: str) -> str:
    path = folder / "model.onnx"
    path.write_text(text)
    return submit(context, drops(path)[0], source="cli").job_id


def output_of(context: Context, folder: Path, job_id: str) -> str:
    """Store a step's output and record the run that made it; return its sha256."""
    path = folder / "output"
    path.write_text(f"made for {job_id}")
    sha256 = context.store.put(path).sha256
    run = StepRun(
        id=job_id[::-1], job_id=job_id, attempt=1, kind="onnx_optimize", toolchain="onnx", cache_key="k",
        state=StepRunState.SUCCEEDED, outputs={"model": sha256}, started_at=db.now(),
    )  # fmt: skip
    step_runs.save(context.database, run)
    return sha256


def test_collecting_keeps_every_dropped_model_and_frees_what_ended_jobs_made(context: Context, tmp_path: Path) -> None:
    job_id = dropped(context, tmp_path, "one")
    made = output_of(context, tmp_path, job_id)
    jobs.cancel(context.database, job_id)
    assert collect(context, older_than_days=0, dry_run=True).artifacts == 1
    assert context.store.has(made)
    assert collect(context, older_than_days=1).artifacts == 0
    assert collect(context, older_than_days=0).artifacts == 1
    assert not context.store.has(made)
    assert context.store.has(jobs.find(context.database, job_id).artifact_sha256)


def test_collecting_keeps_what_a_job_that_has_not_ended_may_need(context: Context, tmp_path: Path) -> None:
    made = output_of(context, tmp_path, dropped(context, tmp_path, "two"))
    assert collect(context, older_than_days=0).artifacts == 0
    assert context.store.has(made)
