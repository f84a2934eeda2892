"""Analyze: scan and describe the artifact, then run it once in the sandbox to complete the description."""

from __future__ import annotations

from modelium.arrivals import end_state
from modelium.stages.next_state import Next
from modelium.work import Work, failure
from schemas.catalog import TOOLCHAIN_OF_FORMAT
from schemas.descriptor import AnalysisReport, ModelDescriptor, ProbeReport
from schemas.errors import ErrorDocument
from schemas.job import JobState
from schemas.step_run import StepRunState


def analyze(work: Work) -> Next:
    """Return ``planning`` with the descriptor, or the end that the content leads to."""
    options = {"allowed_globals": work.context.settings.allowed_pickle_globals}
    run = work.step("analyze", model_inputs(work), toolchain="onnx", options=options)
    if run.state is not StepRunState.SUCCEEDED:
        return _end(work, failure(run), None)
    report = AnalysisReport.model_validate(run.report)
    if report.refusal is not None:
        return _end(work, report.refusal, report.descriptor)
    work.keep("descriptor", report.descriptor)
    toolchain = TOOLCHAIN_OF_FORMAT[report.descriptor.format]
    run = work.step("probe", model_inputs(work), toolchain=toolchain, descriptor=report.descriptor)
    if run.state is not StepRunState.SUCCEEDED:
        return _end(work, failure(run), report.descriptor)
    return Next(JobState.PLANNING, keep={"descriptor": ProbeReport.model_validate(run.report).descriptor})


def model_inputs(work: Work) -> dict[str, str]:
    """Return the inputs every step on the original gets: the model, and the folder with the sidecar's companions."""
    job = work.claim.job
    return {"model": job.artifact_sha256} | ({"code": job.sidecar_sha256} if job.sidecar_sha256 else {})


def _end(work: Work, error: ErrorDocument, descriptor: ModelDescriptor | None) -> Next:
    error = _named(error, work)
    keep = {"descriptor": descriptor} if descriptor is not None else {}
    return Next(end_state(error), reason=error.message, error=error, keep=keep)


def _named(error: ErrorDocument, work: Work) -> ErrorDocument:
    """Put the dropped file's name where the analyzer, which never sees it, wrote ``<filename>``."""
    name = work.claim.job.uri.rstrip("/").rsplit("/", 1)[-1]
    return error.model_copy(
        update={"message": error.message.replace("<filename>", name), "hint": error.hint.replace("<filename>", name)}
    )
