"""Executes one step in a sandbox."""

from __future__ import annotations

import functools
import re
import signal
from collections.abc import Callable
from pathlib import Path

from executor import cgroup, toolchain, workspace
from executor.collect import read_outputs, read_result
from executor.sandbox import OUT, Command, Ending, Observers, Sandbox
from executor.step_spec import StepOutput, StepSpec
from executor.toolchain import Toolchain
from executor.warm_protocol import FORKABLE
from executor.workspace import Workspace
from schemas.catalog import entry, needs_gpu, parse_options
from schemas.errors import (
    Cancelled,
    InvalidDocument,
    ModelFailed,
    ModeliumError,
    NotFound,
    SandboxCrashed,
    ToolchainMissing,
)
from schemas.step_io import STEP_FILE, StepRequest, StepResult
from schemas.step_run import Limits, Usage

TOOLCHAIN_VARIABLE = "MODELIUM_TOOLCHAIN"
_INPUT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def run(
    spec: StepSpec,
    *,
    workspaces: Path,
    sandbox: Sandbox,
    on_progress: Callable[[float, str], None] | None = None,
    on_log: Callable[[str], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> StepOutput:
    """Execute ``spec`` in a new folder below ``workspaces`` and return what came of it; close it after use.

    A failing step is a result, ``result.ok`` False with its error. The callbacks are called in this thread;
    ``should_stop`` about four times a second.

    Raises:
        SandboxUnavailable: The sandbox does not start on this machine.
        ToolchainMissing: The interpreter or a library of the toolchain is absent.
        Cancelled: ``should_stop`` said so; the sandbox is gone.
        NotFound, InvalidDocument: The spec names a missing input, an unknown kind or wrong options.
    """
    _check(spec)
    isolation = sandbox.isolation(spec.limits)
    _sweep_once(workspaces)
    folder = Workspace(workspaces)
    try:
        ending, gpus = _execute(spec, folder.path, sandbox, Observers(on_log, on_progress, should_stop))
        if isinstance(ending.error, Cancelled):
            raise ending.error
        out = folder.path / OUT
        result, outputs = _outcome(spec.request, spec.limits, out, ending)
    except BaseException:
        folder.remove()
        raise
    usage = Usage(
        wall_s=ending.wall_s,
        cpu_s=ending.cpu_s,
        peak_memory_bytes=ending.peak_memory_bytes,
        import_s=result.import_s or None,
        run_s=result.run_s or None,
        warm=ending.warm is not None,
        gpus=gpus,
    )
    return StepOutput(result, out, outputs, usage, ending.warm or isolation, ending.log, folder)


def prepare(toolchain: Toolchain, *, workspaces: Path, sandbox: Sandbox, limits: Limits, threads: int) -> None:
    """Have ready, in a while, what steps of ``toolchain`` start from; waits for nothing."""
    if toolchain.name in FORKABLE:
        environment = step_environment(threads, toolchain.name)
        like = Command((), workspaces / "next", toolchain.interpreter, limits, {}, environment, warm=toolchain.name)
        sandbox.prepare(like)


def sweep(workspaces: Path) -> int:
    """Remove the folders and control groups of owners that died; return how many. Safe beside running steps."""
    return workspace.sweep(workspaces) + cgroup.sweep()


_sweep_once = functools.cache(sweep)


def _check(spec: StepSpec) -> None:
    kind = entry(spec.request.kind)
    parse_options(kind.kind, spec.request.options)
    if spec.toolchain.name not in kind.toolchains:
        raise InvalidDocument(
            f"Step {kind.kind} does not run in the {spec.toolchain.name} toolchain.",
            hint=f"It runs in: {', '.join(kind.toolchains)}.",
            pointer="/toolchain",
        )
    for name, source in spec.inputs.items():
        if not _INPUT_NAME.fullmatch(name):
            raise InvalidDocument(f"{name!r} cannot name an input.", pointer="/inputs")
        if not source.exists():
            raise NotFound(f"Input {name} of step {kind.kind} is not there: {source}.", hint="Was it collected?")
    for tools in (spec.toolchain, *spec.beside):
        lacking = toolchain.missing(tools)
        if lacking is not None:
            raise ToolchainMissing(lacking, hint=toolchain.mending(tools))


def _execute(spec: StepSpec, folder: Path, sandbox: Sandbox, observers: Observers) -> tuple[Ending, int]:
    """Return how the step ended, and how many GPUs it was shown."""
    request = spec.request.model_copy(
        update={
            "inputs": {name: sandbox.place(name, source) for name, source in spec.inputs.items()},
            "interpreters": {tools.name: str(tools.interpreter) for tools in (spec.toolchain, *spec.beside)},
            "memory_bytes": spec.limits.memory_bytes,
        }
    )
    step_file = folder / STEP_FILE
    step_file.write_text(request.model_dump_json())
    step_file.chmod(0o644)
    interpreter = spec.toolchain.interpreter
    argv = (str(interpreter), "-P", "-s", "-m", "executor.child", str(sandbox.root(folder)))
    environment = step_environment(request.threads, spec.toolchain.name)
    beside = tuple(tools.interpreter for tools in spec.beside)
    command = Command(
        argv=argv,
        workspace=folder,
        interpreter=interpreter,
        limits=spec.limits,
        inputs=spec.inputs,
        environment=environment,
        beside=beside,
        warm=spec.toolchain.name if spec.toolchain.name in FORKABLE else None,
        hurried=request.kind in ("analyze", "measure"),
        timed=request.kind == "measure",
        gpus=_gpus(request),
    )
    try:
        return sandbox.execute(command, observers), command.gpus
    except ToolchainMissing as error:
        # No GPU can be shown: this step fails, and what needs none goes on without it.
        return Ending(-1, error, "", 0.0, None, None), 0


def _gpus(request: StepRequest) -> int:
    """Return how many GPUs the step gets: one if it needs any, since no converter or runner of ours uses more."""
    original = request.descriptor.format if request.descriptor is not None else None
    return int(needs_gpu(request.kind, parse_options(request.kind, request.options), original))


def step_environment(threads: int, toolchain_name: str) -> dict[str, str]:
    """Return the variables that every step of a toolchain has; its warm parent loads the libraries with them.

    Threads that wait for each other sleep: two steps at once, or a step beside a stranger, would else keep the cores
    from those they wait for (a proof of MiniLM beside one busy process: 20 s instead of 1.3). Processes that are timed
    are given none of that.
    """
    count = str(threads)
    return {
        "HF_HUB_OFFLINE": "1",
        "MKL_NUM_THREADS": count,
        "OMP_NUM_THREADS": count,
        "OMP_WAIT_POLICY": "passive",
        "OPENBLAS_NUM_THREADS": count,
        "ORT_DISABLE_TELEMETRY": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",
        "PYTHONNOUSERSITE": "1",
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_OFFLINE": "1",
        TOOLCHAIN_VARIABLE: toolchain_name,
    }


def _outcome(request: StepRequest, limits: Limits, out: Path, ending: Ending) -> tuple[StepResult, dict[str, Path]]:
    """Return the step's result and outputs, or a failed result that says what went wrong."""
    try:
        if ending.error is not None:
            raise ending.error
        if ending.exit_code != 0:
            raise _death(request, ending)
        try:
            result = read_result(out, request.kind, limits)
            return result, read_outputs(out, result.outputs, limits)
        except SandboxCrashed as crash:
            raise (_meddled(request, crash) if _runs_own_code(request) else crash) from None
    except ModeliumError as error:
        return StepResult(ok=False, error=error.document()), {}


def _runs_own_code(request: StepRequest) -> bool:
    """Whether a person's Python runs in this step, which can end the process or write what it likes."""
    return request.kind != "analyze" and request.sidecar is not None and request.sidecar.module is not None


def _death(request: StepRequest, ending: Ending) -> ModeliumError:
    """Say how the interpreter ended. Only where it runs a model can the model be why; SIGKILL never comes from one."""
    if ending.exit_code > 128:
        try:
            name = signal.Signals(ending.exit_code - 128).name
        except ValueError:
            name = f"signal {ending.exit_code - 128}"
        fault = name in ("SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE", "SIGABRT", "SIGTRAP", "SIGSYS")
        if fault and request.kind != "analyze":
            return ModelFailed(
                f"The process died of {name} while it worked on this model (step {request.kind}).",
                hint="The model, or a native library that it calls, crashes here; run it by hand to see where. "
                + _last_line(ending.log),
            )
        return SandboxCrashed(f"The interpreter of step {request.kind} died of {name}.", hint=_last_line(ending.log))
    told = f"ended with status {ending.exit_code} before the step was done"
    if _runs_own_code(request):
        return ModelFailed(f"The model's own code {told} (step {request.kind}).", hint=_last_line(ending.log))
    return SandboxCrashed(f"The interpreter of step {request.kind} {told}.", hint=_last_line(ending.log))


def _meddled(request: StepRequest, crash: SandboxCrashed) -> ModelFailed:
    complaint = str(crash.args[0])
    return ModelFailed(
        f"The model's own code ended step {request.kind} before it was done, or wrote over its result: {complaint}",
        hint="Remove calls to exit, and whatever writes files, from the code that the sidecar names.",
    )


def _last_line(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return f"Its last words: {lines[-1][:300]}" if lines else "It wrote nothing to its log."
