"""Deploy: publish the winner as the next version of its name, with its manifest, and look at its health."""

from __future__ import annotations

from modelium import deployments
from modelium.stages.analyze import model_sha256
from modelium.stages.next_state import Next
from modelium.work import Work
from schemas.account import CandidateAccount
from schemas.evidence import Verdict
from schemas.job import JobState
from schemas.plan import ConversionPlan
from schemas.runtime import Runtime
from schemas.target import TargetProfile


def deploy(work: Work) -> Next:
    """Return ``deployed``, or ``unchanged`` when the original itself is what is served best."""
    verdict = Verdict.model_validate(work.document("verdict"))
    accounts = {a.id: a for a in (CandidateAccount.model_validate(d) for d in work.document("candidates"))}
    assert verdict.winner is not None
    winner = accounts[verdict.winner]
    plan = ConversionPlan.model_validate(work.document("plan"))
    if plan.target.runtime in (Runtime.VLLM, Runtime.LLAMA_CPP):
        return _serve_whole(work, winner, plan.target, verdict)
    assert winner.parity is not None and winner.model_sha256 is not None and work.claim.job.name is not None
    work.note("deploy", f"publishing {work.claim.job.name}")
    deployments.publish(
        work.context,
        job=work.claim.job,
        contender=winner.id,
        model_sha256=winner.model_sha256,
        parity=winner.parity,
        descriptor=work.descriptor(),
        format=winner.format,
        original_sha256=model_sha256(work),
    )
    state = JobState.UNCHANGED if verdict.unchanged else JobState.DEPLOYED
    return Next(state, reason=verdict.reason if verdict.unchanged else None)


def _serve_whole(work: Work, winner: CandidateAccount, target: TargetProfile, verdict: Verdict) -> Next:
    job = work.claim.job
    assert winner.model_sha256 is not None and job.name is not None
    work.note("deploy", f"copying the files of {job.name}")
    deployments.publish_whole(
        work.context, job=job, model_sha256=winner.model_sha256, descriptor=work.descriptor(), target=target
    )
    return Next(JobState.UNCHANGED, reason=verdict.reason)
