"""What a running step says reaches whoever looks, within a second, cheaply, and is kept when a worker dies."""

from __future__ import annotations

import time

import pytest

from modelium import db, step_runs
from modelium.db import Database
from modelium.live_step import LiveStep
from schemas.step_run import StepRun, StepRunState


@pytest.fixture
def run(database: Database, arrive: object) -> StepRun:
    job_id = arrive().job_id  # type: ignore[operator]
    started = StepRun(
        id="a" * 32, job_id=job_id, attempt=1, kind="onnx_optimize", toolchain="onnx", cache_key="k",
        state=StepRunState.RUNNING, started_at=db.now(),
    )  # fmt: skip
    step_runs.save(database, started)
    return started


def said(database: Database, run: StepRun) -> str:
    return "".join(piece.text for piece in step_runs.live(database, run.job_id))


def test_the_first_line_is_there_at_once_and_the_last_after_the_next_tick(database: Database, run: StepRun) -> None:
    live = LiveStep(database, run)
    live.add_log("one\n")
    assert said(database, run) == "one\n"
    live.add_log("two\n")
    assert said(database, run) == "one\n"
    time.sleep(0.6)
    live.tick()
    assert said(database, run) == "one\ntwo\n"
    assert step_runs.of_job(database, run.job_id)[0].log == "one\ntwo\n"


def test_a_flood_costs_a_transaction_or_two(database: Database, run: StepRun) -> None:
    live = LiveStep(database, run)
    began = time.monotonic()
    for n in range(10_000):
        live.add_log(f"line {n}\n")
        live.progress(0.5, str(n))
    pieces = step_runs.live(database, run.job_id)
    assert len(pieces) <= 2 + (time.monotonic() - began) / 0.5


def test_what_is_shown_meanwhile_goes_when_the_record_has_all_of_it(database: Database, run: StepRun) -> None:
    LiveStep(database, run).add_log("one\n")
    step_runs.save(database, run.model_copy(update={"state": StepRunState.SUCCEEDED, "log": "one\nand all\n"}))
    assert said(database, run) == ""
    assert step_runs.of_job(database, run.job_id)[0].log == "one\nand all\n"


def test_the_log_of_a_step_whose_worker_died_is_kept(database: Database, run: StepRun) -> None:
    LiveStep(database, run).add_log("last words\n")
    step_runs.mark_lost(database, run.job_id)
    lost = step_runs.of_job(database, run.job_id)[0]
    assert (lost.state, lost.log) == (StepRunState.LOST, "last words\n")


def test_a_database_that_is_away_costs_no_step(database: Database, run: StepRun) -> None:
    live = LiveStep(Database("sqlite:////nowhere/at/all.db"), run)
    live.add_log("one\n")
    live.progress(0.5, "half")
