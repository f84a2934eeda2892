"""Trial: one sample inference with a deployed model, in the sandbox and under the machine's lease."""

from __future__ import annotations

from modelium import deployments, jobs, machine_lease, step_memory
from modelium.context import Context
from modelium.work import SEED
from schemas.catalog import TOOLCHAIN_OF_FORMAT
from schemas.descriptor import Format, ModelDescriptor
from schemas.errors import NotFound, ToolchainMissing, Unsupported, from_document
from schemas.evidence import TryReport
from schemas.plan import ORIGINAL
from schemas.step_io import StepRequest


def run(context: Context, name: str, *, rows: int) -> TryReport:
    """Return what the active version of ``name`` answers to a sample. Raises what the step raised."""
    import executor
    from deployer.llm_server import is_served_whole
    from executor.toolchain import mending, missing

    deployment = deployments.active(context, name)
    if is_served_whole(deployment.spec.format):
        server = "llama.cpp" if deployment.spec.format is Format.GGUF else "vLLM"
        raise Unsupported(
            f"{name} is served as it is by {server}, which does not run here, so there is nothing to try it with.",
            hint=f"`modelium show {deployment.job_id[:12]}` has the command that serves it and one that asks it.",
        )
    kept = jobs.load_document(context.database, deployment.job_id, "descriptor")
    if kept is None or not context.store.has(deployment.model_sha256):
        raise NotFound(f"The model of {name} is not in the store any more.", hint="Convert it again.")
    served = deployment.spec.format
    toolchain = context.toolchain(TOOLCHAIN_OF_FORMAT[served])
    lacking = missing(toolchain)
    if lacking is not None:
        raise ToolchainMissing(lacking, hint=mending(toolchain))
    limits = context.settings.limits()
    request = StepRequest(
        kind="try_model",
        options={"rows": rows, "format": served.value, "original": deployment.contender == ORIGINAL},
        inputs={"model": "in/model"},
        seed=SEED,
        threads=context.settings.threads,
        memory_bytes=limits.memory_bytes,
        descriptor=ModelDescriptor.model_validate(kept),
    )
    size_bytes = context.store.artifact(deployment.model_sha256).size_bytes
    spec = executor.StepSpec(
        request=request,
        inputs={"model": context.store.path(deployment.model_sha256)},
        toolchain=toolchain,
        limits=limits,
    )
    with (
        machine_lease.hold(
            exclusive=False,
            at_once=context.settings.workers,
            memory_bytes=step_memory.estimate("try_model", toolchain.name, [size_bytes]),
            budget_bytes=context.settings.memory_bytes,
        ),
        executor.run(spec, workspaces=context.home.workspaces, sandbox=context.sandbox) as output,
    ):
        if output.result.error is not None:
            raise from_document(output.result.error)
        return TryReport.model_validate(output.result.report)
