"""Plan: claim the name, let a planner choose candidates, let the validator judge them."""

from __future__ import annotations

import os
import shutil
from typing import Any

from modelium import jobs
from modelium.context import Context
from modelium.cpu_flags import cpu_flags
from modelium.stages.analyze import as_it_is, model_sha256
from modelium.stages.next_state import Next
from modelium.work import Work
from schemas.account import CandidateAccount
from schemas.descriptor import ModelDescriptor
from schemas.errors import ErrorDocument, NeedsInput
from schemas.evidence import ContenderVerdict, Verdict
from schemas.job import JobState
from schemas.plan import ORIGINAL, ConversionPlan, FindingLevel, PlanFinding
from schemas.runtime import Runtime
from schemas.target import TargetProfile


def plan(work: Work) -> Next:
    """Return ``executing`` with a plan that has no error finding, or the end that its findings lead to.

    A model that a server of its own serves as it is goes straight to ``deploying``.
    """
    job, claim = work.claim.job, work.claim
    name = (claim.sidecar.name if claim.sidecar else None) or claim.label
    owner = jobs.claim_name(work.context.database, name, job.uri)
    if owner is not None:
        raise NeedsInput(
            f"Under which name should this be deployed? {name!r} belongs to {owner}.",
            hint="Write `name: another-name` into the model's sidecar.",
        )
    jobs.set_name(work.context.database, job.id, name)
    server = as_it_is(work.context, job.target, claim.sidecar, work.descriptor())
    if server is not None:
        return Next(JobState.DEPLOYING, keep=_served_whole(work, server))
    chosen, findings = make_plan(work.context, work.descriptor(), job.target)
    keep = {"plan": chosen, "plan_findings": [finding.model_dump(mode="json") for finding in findings]}
    errors = [finding for finding in findings if finding.level is FindingLevel.ERROR]
    if errors:
        error = ErrorDocument(code="model_failed", message=f"No plan can be carried out here: {errors[0].message}")
        return Next(JobState.FAILED, reason=error.message, error=error, keep=keep)
    return Next(JobState.EXECUTING, keep=keep)


def _served_whole(work: Work, server: Runtime) -> dict[str, Any]:
    """Return the documents of a job whose model goes to a server of its own; nothing is run for it."""
    from planner.language_models import plan_as_it_is, why_unmeasured

    descriptor, model = work.descriptor(), model_sha256(work)
    chosen = plan_as_it_is(descriptor, work.claim.job.target, server)
    reason = why_unmeasured(server)
    account = CandidateAccount(
        id=ORIGINAL,
        format=descriptor.format,
        precision=chosen.candidates[0].precision,
        state="skipped",
        reason=reason,
        size_bytes=work.context.store.artifact(model).size_bytes,
        model_sha256=model,
    )
    verdict = Verdict(
        winner=ORIGINAL,
        unchanged=True,
        reason=reason,
        contenders=(ContenderVerdict(contender=ORIGINAL, outcome="winner", reason=reason),),
    )
    return {"plan": chosen, "candidates": [account.model_dump(mode="json")], "verdict": verdict}


def make_plan(
    context: Context, descriptor: ModelDescriptor, target: TargetProfile
) -> tuple[ConversionPlan, tuple[PlanFinding, ...]]:
    """Return the rules' plan and what the validator says of it."""
    from planner import rules
    from validator import MachineBounds, check

    chosen = rules.plan(descriptor, target, context.toolchains, cpu_flags())
    machine = MachineBounds(
        memory_bytes=min(context.settings.step_memory_bytes, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        disk_bytes=shutil.disk_usage(context.home.root).free,
        cpus=context.settings.threads,
    )
    return chosen, check(chosen, descriptor=descriptor, target=target, machine=machine)
