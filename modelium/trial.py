"""Trial: one sample inference with a deployed model, in the sandbox and under the machine's lease."""

from __future__ import annotations

from modelium import deployments, jobs, machine_lease
from modelium.context import Context
from modelium.work import SEED
from schemas.descriptor import ModelDescriptor
from schemas.errors import NotFound, from_document
from schemas.evidence import TryReport
from schemas.step_io import StepRequest


def run(context: Context, name: str, *, rows: int) -> TryReport:
    """Return what the active version of ``name`` answers to a sample. Raises what the step raised."""
    import executor

    deployment = deployments.active(context, name)
    kept = jobs.load_document(context.database, deployment.job_id, "descriptor")
    if kept is None or not context.store.has(deployment.model_sha256):
        raise NotFound(f"The model of {name} is not in the store any more.", hint="Convert it again.")
    limits = context.settings.limits()
    request = StepRequest(
        kind="try_model",
        options={"rows": rows},
        inputs={"model": "in/model"},
        seed=SEED,
        threads=context.settings.threads,
        memory_bytes=limits.memory_bytes,
        descriptor=ModelDescriptor.model_validate(kept),
    )
    spec = executor.StepSpec(
        request=request,
        inputs={"model": context.store.path(deployment.model_sha256)},
        toolchain=context.toolchain("onnx"),
        limits=limits,
    )
    with (
        machine_lease.hold(exclusive=False),
        executor.run(spec, workspaces=context.home.workspaces, sandbox=context.sandbox) as output,
    ):
        if output.result.error is not None:
            raise from_document(output.result.error)
        return TryReport.model_validate(output.result.report)
