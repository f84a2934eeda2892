"""JobAccount: the whole story of one job, as ``convert --json`` prints it and the report draws it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from schemas.artifact import Artifact
from schemas.deployment import Deployment
from schemas.descriptor import Format, ModelDescriptor
from schemas.document import Document
from schemas.evidence import Machine, Measurement, ParityReport, ReferenceReport, Verdict
from schemas.job import Job, JobState, Transition
from schemas.plan import ConversionPlan, PlanFinding
from schemas.precision import Precision
from schemas.sidecar import Sidecar
from schemas.step_run import StepRun

CandidateState = Literal["pending", "converted", "passed", "failed", "skipped"]


class CandidateAccount(Document):
    """One contender with its evidence. The original stands among them with id 'original'."""

    id: str
    format: Format = Format.ONNX
    precision: Precision
    state: CandidateState
    reason: str | None = None
    size_bytes: int | None = None
    model_sha256: str | None = None
    steps: tuple[str, ...] = Field(default=(), description="Ids of its StepRuns, in order")
    parity: ParityReport | None = None
    measurements: tuple[Measurement, ...] = ()


class DeploymentAccount(Document):
    """Where the winner was published, and what to do with it."""

    name: str
    version: int
    entry: str
    manifest: str | None
    report: str | None
    deployment: Deployment
    next_steps: dict[str, str] = Field(default_factory=dict, description="Label to a command or snippet that works")


class JobAccount(Document):
    """The whole story of one job."""

    schema_version: Literal[1] = 1
    job_id: str
    state: JobState
    reason: str | None
    hint: str | None = None
    job: Job
    artifact: Artifact | None = None
    sidecar: Sidecar | None = None
    descriptor: ModelDescriptor | None = None
    plan: ConversionPlan | None = None
    plan_findings: tuple[PlanFinding, ...] = ()
    reference: ReferenceReport | None = None
    candidates: tuple[CandidateAccount, ...] = ()
    machine: Machine | None = None
    verdict: Verdict | None = None
    winner: str | None = None
    deployment: DeploymentAccount | None = None
    report: str | None = Field(default=None, description="Path of the HTML report")
    steps: tuple[StepRun, ...] = ()
    history: tuple[Transition, ...] = ()
