"""Put the whole story of a job together from the database."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import select

from modelium import db, jobs, step_runs
from modelium.context import Context
from schemas.account import CandidateAccount, DeploymentAccount, JobAccount
from schemas.artifact import Artifact
from schemas.deployment import Deployment
from schemas.descriptor import Format, ModelDescriptor
from schemas.evidence import MeasureReport, ReferenceReport, Verdict
from schemas.job import ENDS, Job
from schemas.plan import ORIGINAL, ConversionPlan, PlanFinding
from schemas.precision import Precision
from schemas.sidecar import Sidecar


def build(context: Context, job_id: str) -> JobAccount:
    """Return the account of one job as it stands now. Raises NotFound."""
    job = jobs.find(context.database, job_id)
    with context.database.read() as connection:
        query = select(db.documents.c.kind, db.documents.c.document).where(db.documents.c.job_id == job.id)
        kept: dict[str, Any] = {row.kind: row.document for row in connection.execute(query).all()}
        artifact = connection.execute(
            select(db.artifacts.c.document).where(db.artifacts.c.sha256 == job.artifact_sha256)
        ).scalar_one()
        sidecar = connection.execute(select(db.jobs.c.sidecar).where(db.jobs.c.id == job.id)).scalar()
        published = connection.execute(
            select(db.deployments.c.document).where(
                db.deployments.c.job_id == job.id, db.deployments.c.attempt == job.attempt
            )
        ).scalar()
    measured = MeasureReport.model_validate(kept["measure"]) if "measure" in kept else None
    verdict = Verdict.model_validate(kept["verdict"]) if "verdict" in kept else None
    report = context.home.reports / job.id[:12] / "index.html"
    stored = Artifact.model_validate(artifact)
    return JobAccount(
        job_id=job.id,
        state=job.state,
        reason=job.reason,
        hint=(job.error.hint or None) if job.error else None,
        job=job,
        artifact=stored,
        sidecar=Sidecar.model_validate(sidecar) if sidecar else None,
        descriptor=ModelDescriptor.model_validate(kept["descriptor"]) if "descriptor" in kept else None,
        plan=ConversionPlan.model_validate(kept["plan"]) if "plan" in kept else None,
        plan_findings=tuple(PlanFinding.model_validate(f) for f in kept.get("plan_findings", [])),
        reference=ReferenceReport.model_validate(kept["reference"]) if "reference" in kept else None,
        candidates=_candidates(kept.get("candidates", []), measured, stored),
        machine=measured.machine if measured else None,
        verdict=verdict,
        winner=verdict.winner if verdict else None,
        deployment=_deployment(context, job, Deployment.model_validate(published), report) if published else None,
        report=str(report) if job.state in ENDS else None,
        steps=step_runs.of_job(context.database, job.id, job.attempt),
        history=jobs.history(context.database, job.id),
    )


def _candidates(
    kept: list[dict[str, Any]], measured: MeasureReport | None, artifact: Artifact
) -> tuple[CandidateAccount, ...]:
    """Return the contenders with their measurements; the original first, whether or not it may be served."""
    accounts = [CandidateAccount.model_validate(document) for document in kept]
    if accounts and not any(account.id == ORIGINAL for account in accounts):
        baseline = CandidateAccount(
            id=ORIGINAL, precision=Precision.FP32, state="skipped", size_bytes=artifact.size_bytes,
            model_sha256=artifact.sha256, reason="The baseline; it cannot be served as it is.",
        )  # fmt: skip
        accounts.insert(0, baseline)
    measurements = measured.measurements if measured else ()
    return tuple(
        account.model_copy(update={"measurements": tuple(m for m in measurements if m.contender == account.id)})
        for account in accounts
    )


def _deployment(context: Context, job: Job, deployment: Deployment, report: Path) -> DeploymentAccount:
    return DeploymentAccount(
        name=deployment.name,
        version=deployment.version,
        entry=deployment.entry,
        manifest=deployment.manifest,
        report=str(report),
        deployment=deployment,
        next_steps=_next_steps(context, deployment),
    )


def _next_steps(context: Context, deployment: Deployment) -> dict[str, str]:
    from deployer import engines, llm_server
    from deployer.next_steps import next_steps

    manifest = Path(deployment.manifest) if deployment.manifest else None
    if deployment.spec.format is Format.TENSORRT_RTX and manifest is not None:
        return engines.next_steps(Path(deployment.entry), manifest)
    if llm_server.is_served_whole(deployment.spec.format):
        return llm_server.next_steps(deployment.spec, files=Path(deployment.entry), manifest=manifest)
    return next_steps(
        deployment.spec,
        repository=context.home.repository,
        manifest=manifest,
        url=context.settings.triton_url or "http://localhost:8000",
    )
