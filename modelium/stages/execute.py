"""Execute: reference outputs first, then every candidate's chain of steps, then parity."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from modelium.arrivals import end_state
from modelium.cpu_flags import cpu_flags
from modelium.stages.analyze import model_inputs, model_sha256
from modelium.stages.next_state import Next
from modelium.work import Work, failure
from schemas.account import CandidateAccount
from schemas.catalog import TOOLCHAIN_OF_FORMAT, entry, toolchain_of
from schemas.descriptor import Format, ModelDescriptor
from schemas.errors import ErrorDocument, SizesFrozen, Unsupported
from schemas.evidence import ParityReport, ReferenceReport
from schemas.job import JobState
from schemas.plan import ORIGINAL, Candidate, ConversionPlan, Step
from schemas.precision import Precision
from schemas.step_run import StepRun, StepRunState

log = logging.getLogger(__name__)
_FINAL = frozenset({"model_failed", "needs_input", "quarantined"})
"""What no fallback can mend: it is the model's, not the converter's."""


def execute(work: Work) -> Next:
    """Return ``measuring`` with the candidates that passed parity, or ``failed`` when none may be served.

    When none was proven because conversions hold at some sizes only, the sizes are fixed in the descriptor, which later
    stages read, and all is done again: the original's answers, the chains, parity.
    """
    from planner.fixed_sizes import fixed_sizes

    descriptor = work.descriptor()
    plan = ConversionPlan.model_validate(work.document("plan"))
    run = _reference(work, descriptor, then=_toolchains(plan))
    if run.state is not StepRunState.SUCCEEDED:
        error = failure(run)
        return Next(end_state(error), reason=error.message, error=error)
    tried = first = _try(work, plan, descriptor, run)
    for choices in fixed_sizes(descriptor):
        if tried.passed or not tried.frozen:
            break
        for fixed in choices:
            run = _reference(work, fixed)
            if run.state is StepRunState.SUCCEEDED:
                log.info("fixing sizes: %s", fixed.notes[-1])
                tried = _try(work, plan, fixed, run)
                break
    if tried.passed:
        return Next(JobState.MEASURING, keep={**tried.keep, "descriptor": tried.descriptor})
    account = next(iter(first.accounts.values()))
    hints = [failure(run).hint for run in first.failed.values() if failure(run).hint]
    error = ErrorDocument(
        code="conversion_failed",
        message=f"No candidate could be proven; {account.id}: {account.reason}"[:2000],
        hint=hints[0] if hints else f"`modelium logs {work.claim.job.id[:12]}` shows each step's log.",
    )
    return Next(JobState.FAILED, reason=error.message, error=error, keep=first.keep)


@dataclass(frozen=True)
class _Tried:
    """What became of all candidates with one descriptor."""

    descriptor: ModelDescriptor
    reference: StepRun
    accounts: dict[str, CandidateAccount]
    failed: dict[str, StepRun]

    @property
    def passed(self) -> bool:
        return any(account.state == "passed" for account in self.accounts.values())

    @property
    def frozen(self) -> bool:
        return any(failure(run).code == SizesFrozen.code for run in self.failed.values())

    @property
    def keep(self) -> dict[str, Any]:
        return {
            "candidates": [account.model_dump(mode="json") for account in self.accounts.values()],
            "inputs": {"reference": self.reference.outputs["reference"]},
            "reference": ReferenceReport.model_validate(self.reference.report),
        }


def _toolchains(plan: ConversionPlan) -> frozenset[str]:
    """Return the toolchains that the plan's steps and proofs run in."""
    candidates = plan.candidates
    steps = {step.toolchain for candidate in candidates for step in candidate.steps}
    return frozenset(steps | {TOOLCHAIN_OF_FORMAT[candidate.format] for candidate in candidates})


def _reference(work: Work, descriptor: ModelDescriptor, then: Iterable[str] = ()) -> StepRun:
    """Run the step that computes the original's answers, before any exporter has touched it."""
    return work.step(
        "reference",
        model_inputs(work),
        toolchain=toolchain_of(descriptor),
        descriptor=descriptor,
        with_target=True,
        then=then,
    )


def _try(work: Work, plan: ConversionPlan, descriptor: ModelDescriptor, run: StepRun) -> _Tried:
    """Convert and prove every candidate of the plan beside the original's answers in ``run``."""
    report, shared = ReferenceReport.model_validate(run.report), _Shared()
    work.keep("reference", report)
    accounts = _convert_all(work, plan, descriptor, run.outputs["reference"], report, shared)
    return _Tried(descriptor, run, accounts, shared.failed)


def _convert_all(
    work: Work,
    plan: ConversionPlan,
    descriptor: ModelDescriptor,
    reference: str,
    report: ReferenceReport,
    shared: _Shared,
) -> dict[str, CandidateAccount]:
    """Convert and prove every candidate, as many at once as the settings allow; those that cannot win begin last."""
    accounts = {
        candidate.id: CandidateAccount(
            id=candidate.id, format=candidate.format, precision=candidate.precision, state="pending"
        )
        for candidate in plan.candidates
    }
    bounds = {candidate.id: _why_it_cannot_win(candidate, plan, report, descriptor) for candidate in plan.candidates}
    began, budget_s = time.monotonic(), work.context.settings.convert_budget_s

    def take_all_the_way(candidate: Candidate) -> CandidateAccount:
        account, bound = accounts[candidate.id], bounds[candidate.id]
        if bound is not None and time.monotonic() - began > budget_s:
            reason = f"Not built: the budget of {budget_s:g} s was spent, and {bound}."
            return account.model_copy(update={"state": "skipped", "reason": reason})
        account = _convert(work, candidate, descriptor, reference, account, shared)
        if account.state == "converted":
            account = _prove(work, candidate, descriptor, reference, account)
        return account

    at_once = min(work.context.settings.workers, len(plan.candidates))
    with ThreadPoolExecutor(at_once, thread_name_prefix="candidate") as pool:
        try:
            ordered = sorted(plan.candidates, key=lambda candidate: bounds[candidate.id] is not None)
            waiting = [pool.submit(take_all_the_way, candidate) for candidate in ordered]
            for done in as_completed(waiting):
                account = done.result()
                accounts[account.id] = account
                work.keep("candidates", [a.model_dump(mode="json") for a in accounts.values()])
        except BaseException:
            # The stage has come to its end: nothing that it began may outlive it.
            pool.shutdown(wait=False, cancel_futures=True)
            work.stopping.set()
            raise
    return accounts


@dataclass
class _Shared:
    """What candidates have in common: their first steps, often.

    ``failed`` holds what has failed for this job already, which is not run again for the next candidate; successes come
    from the step cache. Who wants a step that runs for another waits for it, and does not stand in the machine's line.
    """

    failed: dict[str, StepRun] = field(default_factory=dict)
    _running: defaultdict[str, threading.Lock] = field(default_factory=lambda: defaultdict(threading.Lock))
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def once(self, same: str, run: Callable[[], StepRun]) -> StepRun:
        """Return what the step named ``same`` gave, running it unless it has failed already."""
        with self._guard:
            lock = self._running[same]
        with lock:
            if same in self.failed:
                return self.failed[same]
            ended = run()
            if ended.state is not StepRunState.SUCCEEDED:
                self.failed[same] = ended
            return ended


def _why_it_cannot_win(
    candidate: Candidate, plan: ConversionPlan, reference: ReferenceReport, descriptor: ModelDescriptor
) -> str | None:
    """Return the bound that keeps a candidate from winning however fast it is, or None."""
    from planner.shape_of_work import own_precision

    if candidate.precision in (Precision.FP32, own_precision(descriptor)):
        return None
    if candidate.precision not in plan.target.precisions:
        return f"the target does not allow {candidate.precision.value}"
    if all(case.source == "random" for case in reference.cases):
        return f"there are no real samples to prove {candidate.precision.value} on"
    return None


def _convert(
    work: Work,
    candidate: Candidate,
    descriptor: ModelDescriptor,
    reference: str,
    account: CandidateAccount,
    shared: _Shared,
) -> CandidateAccount:
    """Run the chain; each step's output model is the next one's input."""
    model = model_sha256(work)
    ids: list[str] = []
    for step in candidate.steps:
        inputs = {**model_inputs(work), "model": model, "reference": reference}
        for attempt in (step, *step.fallbacks):
            same = f"{model} {attempt.kind} {attempt.toolchain} {sorted(attempt.options.items())}"
            run = shared.once(same, partial(_run, work, attempt, inputs, descriptor, candidate.id))
            ids.append(run.id)
            if run.state is StepRunState.SUCCEEDED:
                break
            if failure(run).code in _FINAL:
                break
            log.info("%s: %s failed: %s", candidate.id, attempt.kind, failure(run).message)
        if run.state is not StepRunState.SUCCEEDED:
            reason = f"{run.kind}: {failure(run).message}"
            return account.model_copy(update={"state": "failed", "reason": reason, "steps": tuple(ids)})
        model = run.outputs["model"]
    size_bytes = work.context.store.artifact(model).size_bytes
    return account.model_copy(
        update={"state": "converted", "model_sha256": model, "steps": tuple(ids), "size_bytes": size_bytes}
    )


def _run(work: Work, step: Step, inputs: dict[str, str], descriptor: ModelDescriptor, contender: str) -> StepRun:
    return work.step(
        step.kind,
        inputs,
        toolchain=step.toolchain,
        options=step.options,
        contender=contender,
        descriptor=descriptor,
        with_target=entry(step.kind).reads_target,
    )


def _prove(
    work: Work, candidate: Candidate, descriptor: ModelDescriptor, reference: str, account: CandidateAccount
) -> CandidateAccount:
    from planner.weight_bits import saturates

    assert account.model_sha256 is not None
    run = work.step(
        "parity",
        {"model": account.model_sha256, "reference": reference},
        toolchain=TOOLCHAIN_OF_FORMAT[candidate.format],
        options={
            "precision": candidate.precision.value,
            "format": candidate.format.value,
            "original": candidate.id == ORIGINAL,
        },
        contender=candidate.id,
        descriptor=descriptor,
        with_target=True,
        machine="saturates" if candidate.precision is Precision.INT8 and saturates(cpu_flags()) else "",
    )
    steps = (*account.steps, run.id)
    if run.state is not StepRunState.SUCCEEDED:
        return account.model_copy(update={"state": "failed", "reason": failure(run).message, "steps": steps})
    parity = ParityReport.model_validate(run.report)
    unserved = _why_unserved(work, candidate, parity, descriptor) if parity.passed else None
    state = "passed" if parity.passed and unserved is None else "failed"
    reason = f"It gives the same answers and cannot be served: {unserved}" if unserved else parity.reason
    return account.model_copy(update={"state": state, "reason": reason, "steps": steps, "parity": parity})


def _why_unserved(work: Work, candidate: Candidate, parity: ParityReport, descriptor: ModelDescriptor) -> str | None:
    """Return why the target's backend cannot serve the candidate's tensors, before it is timed for nothing."""
    from deployer.entry import entry_spec

    if candidate.format is Format.TENSORRT_RTX:
        return None
    try:
        entry_spec("candidate", 1, parity, descriptor, work.claim.job.target, format=candidate.format)
    except Unsupported as error:
        return str(error)
    return None
