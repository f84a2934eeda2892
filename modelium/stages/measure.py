"""Measure: time the original and every proven candidate in turn, alone on the machine, and let the verdict decide."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from modelium.report.story import STEADY
from modelium.stages.analyze import model_inputs, model_sha256
from modelium.stages.next_state import Next
from modelium.step_cache import machine_identity
from modelium.work import Work, failure
from schemas.account import CandidateAccount
from schemas.catalog import TOOLCHAIN_OF_FORMAT, toolchain_of
from schemas.descriptor import ModelDescriptor
from schemas.errors import ErrorDocument
from schemas.evidence import MeasureReport, Verdict
from schemas.job import JobState
from schemas.objective import Objective
from schemas.plan import ORIGINAL
from schemas.step_run import StepRun, StepRunState

if TYPE_CHECKING:
    from validator.contender import Contender

_TOOLCHAIN = "onnx"
"""Of the process that has the others timed, each in its own."""


def measure(work: Work) -> Next:
    """Return ``deploying`` with the winner, or ``failed`` when nothing may be published."""
    from validator.contender import Contender
    from validator.verdict import decide

    descriptor, job = work.descriptor(), work.claim.job
    accounts = [CandidateAccount.model_validate(a) for a in work.document("candidates")]
    passed = [account for account in accounts if account.state == "passed"]
    inputs = {**model_inputs(work), "reference": work.document("inputs")["reference"]}
    for account in passed:
        if account.id != ORIGINAL:
            assert account.model_sha256 is not None
            inputs[f"candidate.{account.id}"] = account.model_sha256
    run = _timed(work, inputs, passed, descriptor)
    work.context.prepare(_TOOLCHAIN)  # for the next model's; nothing is timed any more
    if run.state is not StepRunState.SUCCEEDED:
        error = failure(run)
        return Next(JobState.FAILED, reason=error.message, error=error)
    report = MeasureReport.model_validate(run.report)
    contenders = [
        Contender(
            id=account.id,
            precision=account.precision,
            steps=len(account.steps),
            size_bytes=account.size_bytes or 0,
            parity=account.parity,
            measurements=tuple(m for m in report.measurements if m.contender == account.id),
            failure=account.reason if account.state != "passed" else report.failures.get(account.id),
        )
        for account in accounts
        if account.state != "skipped"
    ]
    if not any(account.id == ORIGINAL for account in accounts):
        contenders.insert(0, _baseline(work, descriptor, report))
    verdict: Verdict = decide(job.target, descriptor.format, contenders)
    keep = {"measure": report, "verdict": verdict}
    if verdict.winner is None:
        error = ErrorDocument(code="conversion_failed", message=f"Nothing may be published: {verdict.reason}")
        return Next(JobState.FAILED, reason=error.message, error=error, keep=keep)
    return Next(JobState.DEPLOYING, keep=keep)


def _timed(work: Work, inputs: dict[str, str], passed: list[CandidateAccount], descriptor: ModelDescriptor) -> StepRun:
    """Time them, or take the whole of an earlier measurement of these very bytes on this machine.

    That is one run still, in which all were timed in turn; the record says when. A retry measures anew, and what went
    wrong or was disturbed is not taken for an answer twice.
    """
    job, settings = work.claim.job, work.context.settings
    throughput = job.target.objective is Objective.THROUGHPUT
    return work.step(
        "measure",
        inputs,
        toolchain=_TOOLCHAIN,
        beside={toolchain_of(descriptor), *(TOOLCHAIN_OF_FORMAT[account.format] for account in passed)},
        options={
            "formats": {account.id: account.format.value for account in passed if account.id != ORIGINAL},
            "batch_sizes": job.target.batch_sizes,
            "deciding": job.target.batch_sizes if throughput else job.target.batch_sizes[:1],
            "rounds": settings.measure_rounds,
            "budget_s": settings.measure_budget_s,
        },
        descriptor=descriptor,
        exclusive=True,
        reuse=job.attempt == 1,
        reusable=_is_steady,
        machine=machine_identity(),
    )


def _is_steady(run: StepRun) -> bool:
    """Whether all were timed, and paired rounds and the medians of all runs tell of each the same story."""
    report = MeasureReport.model_validate(run.report)
    originals = {measured.batch: measured for measured in report.measurements if measured.contender == ORIGINAL}
    for measured in report.measurements:
        original = originals.get(measured.batch)
        if original is None:
            return False
        pairs = zip(original.rounds_ms, measured.rounds_ms, strict=False)
        paired = median(before / after for before, after in pairs)
        if not 1 / STEADY < paired * measured.median_ms / original.median_ms < STEADY:
            return False
    return not report.failures


def _baseline(work: Work, descriptor: ModelDescriptor, report: MeasureReport) -> Contender:
    from planner.shape_of_work import own_precision
    from validator.contender import Contender

    return Contender(
        id=ORIGINAL,
        precision=own_precision(descriptor),
        steps=0,
        size_bytes=work.context.store.artifact(model_sha256(work)).size_bytes,
        parity=None,
        measurements=tuple(m for m in report.measurements if m.contender == ORIGINAL),
        failure=report.failures.get(ORIGINAL),
    )
