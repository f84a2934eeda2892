"""Analyze: scan and describe the artifact, then run it once in the sandbox to complete the description."""

from __future__ import annotations

from dataclasses import replace

from modelium import db, jobs
from modelium.arrivals import end_state
from modelium.context import Context
from modelium.expected import expected_toolchain
from modelium.stages.next_state import Next
from modelium.store_lock import kept
from modelium.work import Work, failure
from schemas.catalog import toolchain_of
from schemas.descriptor import AnalysisReport, Format, ModelDescriptor, ProbeReport, UnpackReport
from schemas.errors import ErrorDocument
from schemas.job import JobState
from schemas.runtime import Runtime
from schemas.sidecar import Sidecar
from schemas.step_run import StepRunState
from schemas.target import TargetProfile


def analyze(work: Work) -> Next:
    """Return ``planning`` with the descriptor, or the end that the content leads to."""
    inputs = _inputs(work, work.claim.job.artifact_sha256)
    report = _describe(work, inputs)
    if not isinstance(report, AnalysisReport):
        return report
    if report.descriptor.format is Format.ARCHIVE:
        room = int(work.context.settings.step_workspace_bytes * 0.8)
        run = work.step("unpack", inputs, toolchain="onnx", options={"max_bytes": room}, descriptor=report.descriptor)
        if run.state is not StepRunState.SUCCEEDED:
            return _end(work, failure(run), report.descriptor)
        work.keep("unpacked", {"model": run.outputs["model"]})
        if UnpackReport.model_validate(run.report).sidecar and work.claim.job.sidecar_sha256 is None:
            error = _adopt_sidecar(work, run.outputs["model"])
            if error is not None:
                return _end(work, error, report.descriptor)
        inputs = model_inputs(work)
        report = _describe(work, inputs)
        if not isinstance(report, AnalysisReport):
            return report
    claim = work.claim
    if as_it_is(work.context, claim.job.target, claim.sidecar, report.descriptor) is not None:
        return Next(JobState.PLANNING, keep={"descriptor": report.descriptor})
    run = work.step("probe", inputs, toolchain=toolchain_of(report.descriptor), descriptor=report.descriptor)
    if run.state is not StepRunState.SUCCEEDED:
        return _end(work, failure(run), report.descriptor)
    return Next(JobState.PLANNING, keep={"descriptor": ProbeReport.model_validate(run.report).descriptor})


def _adopt_sidecar(work: Work, model: str) -> ErrorDocument | None:
    """Take the sidecar inside what an archive held, where none stood beside it; return what is wrong with it."""
    from ingestion import receive_sidecar

    store = work.context.store
    with kept(work.context.home):
        sidecar, artifact, error = receive_sidecar(store.path(model), store)
        if error is not None or sidecar is None or artifact is None:
            return error
        with work.context.database.write() as connection:
            db.keep_artifact(connection, artifact)
    job = jobs.adopt_sidecar(work.context.database, work.claim.job, sidecar, artifact.sha256)
    work.claim = replace(work.claim, job=job, sidecar=sidecar)
    return None


def _describe(work: Work, inputs: dict[str, str]) -> AnalysisReport | Next:
    options = {"allowed_globals": work.context.settings.allowed_pickle_globals}
    expected = expected_toolchain(work.claim.job.uri, work.context.store.path(inputs["model"]))
    run = work.step("analyze", inputs, toolchain="onnx", options=options, then=(expected,) if expected else ())
    if run.state is not StepRunState.SUCCEEDED:
        return _end(work, failure(run), None)
    report = AnalysisReport.model_validate(run.report)
    if report.refusal is not None:
        return _end(work, report.refusal, report.descriptor)
    work.keep("descriptor", report.descriptor)
    return report


def as_it_is(
    context: Context, target: TargetProfile, sidecar: Sidecar | None, descriptor: ModelDescriptor
) -> Runtime | None:
    """Return the server that takes the model as it is, None when it is to be converted. Raises Unsupported.

    The settings' runtime is for models that are converted; a sidecar's or a command's is for this one.
    """
    from planner.language_models import server_of

    general = context.settings.target
    named = "runtime" in target.model_fields_set
    generally = "runtime" in general.model_fields_set and general.runtime is target.runtime
    in_sidecar = sidecar is not None and sidecar.target is not None and "runtime" in sidecar.target.model_fields_set
    return server_of(descriptor, target, chosen=in_sidecar or (named and not generally))


def model_sha256(work: Work) -> str:
    """Return the original: what was dropped, or what an archive held."""
    unpacked = work.document("unpacked")
    return str(unpacked["model"]) if unpacked else work.claim.job.artifact_sha256


def model_inputs(work: Work) -> dict[str, str]:
    """Return the inputs every step on the original gets: the model, and the folder with the sidecar's companions."""
    return _inputs(work, model_sha256(work))


def _inputs(work: Work, model: str) -> dict[str, str]:
    code = work.claim.job.sidecar_sha256
    return {"model": model} | ({"code": code} if code else {})


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
