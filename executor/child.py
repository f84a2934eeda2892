"""Runs inside the sandbox: ``python -P -m executor.child WORKSPACE`` reads a step, runs it and writes its result.

Anyone can run it by hand on a workspace folder. It is the only code that reaches analyzers and converters.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import random
import select
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from executor import landlock
from executor.toolchain import versions_here
from executor.warm_protocol import DONE_VARIABLE
from schemas.catalog import StepKind, entry, parse_options
from schemas.errors import InvalidDocument, LimitExceeded, ModelFailed, ModeliumError, ToolchainMissing
from schemas.step_io import RESULT_FILE, STEP_FILE, StepContext, StepFunction, StepOutcome, StepRequest, StepResult

PRELOADED = {
    "onnx": ("onnx", "onnxruntime"),
    "torch": ("torch",),
    "sklearn": ("sklearn",),
    "boosting": ("sklearn",),
    "openvino": ("openvino",),
}
"""What every step of a toolchain needs, imported before the clock of the step's own work starts."""

_PROGRESS_EVERY_S = 0.1


def main(workspace: Path) -> StepResult:
    """Run the step in ``workspace`` and return its result; every failure becomes one."""
    began = time.perf_counter()
    imported = began
    memory_bytes = 0
    try:
        request = _read(workspace)
        memory_bytes = request.memory_bytes
        kind = entry(request.kind)
        options = parse_options(request.kind, request.options)
        random.seed(request.seed)
        function = _import(kind)
        imported = time.perf_counter()
        outcome = function(StepContext(request, workspace, options, _progress()))
        return _success(outcome, imported - began, time.perf_counter() - imported)
    except ModeliumError as error:
        failure = error
    except MemoryError:
        failure = LimitExceeded(
            "The step ran out of memory.",
            hint="Raise step_memory_bytes (MODELIUM_STEP_MEMORY_BYTES), or use a smaller model.",
            limit=memory_bytes,
            actual=memory_bytes,
        )
    except SystemExit:
        failure = ModelFailed("The model's own code ended the interpreter.", hint="Remove the call to exit from it.")
    except Exception as error:  # noqa: BLE001 - the one edge where our own faults become documents
        traceback.print_exc()
        failure = _storage(error) or ModeliumError(
            f"Modelium itself failed in this step: {type(error).__name__}: {error}",
            hint="This is a fault of ours; the step's log has the traceback.",
        )
    # Without the report only: what was written so far is void.
    run_s = time.perf_counter() - imported
    return StepResult(ok=False, error=failure.document(), import_s=imported - began, run_s=run_s)


def _read(workspace: Path) -> StepRequest:
    try:
        return StepRequest.model_validate_json((workspace / STEP_FILE).read_bytes())
    except (OSError, ValueError) as error:
        raise InvalidDocument(f"{STEP_FILE} cannot be read: {error}", pointer="/") from error


def _import(kind: StepKind) -> StepFunction:
    module_name, _, function_name = kind.function.partition(":")
    toolchain = os.environ.get("MODELIUM_TOOLCHAIN", kind.toolchains[0])
    # Analysis reads headers as bytes: it imports what a format needs itself, and starts in a tenth of a second.
    # Measuring leaves the runtimes to the processes that it times.
    preloaded = () if kind.kind in ("analyze", "measure") else PRELOADED.get(toolchain, ())
    try:
        for name in preloaded:
            importlib.import_module(name)
        function: StepFunction = getattr(importlib.import_module(module_name), function_name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("analyzer", "converters", "schemas", "executor"):
            raise  # our own module: our fault
        raise ToolchainMissing(
            f"Step {kind.kind} needs the Python package {error.name}, which the {toolchain} toolchain lacks.",
            hint=f"Run: make setup, or pip install 'modelium[{toolchain}]' there.",
        ) from error
    return function


def _success(outcome: StepOutcome, import_s: float, run_s: float) -> StepResult:
    report = None if outcome.report is None else json.loads(outcome.report.model_dump_json())
    versions = {"python": sys.version.split()[0], **versions_here(os.environ.get("MODELIUM_TOOLCHAIN", ""))}
    return StepResult(
        ok=True, outputs=outcome.outputs, report=report, versions=versions, import_s=import_s, run_s=run_s
    )


def _storage(error: Exception) -> ModeliumError | None:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
        return LimitExceeded(
            f"The step ran out of room: {error.strerror}.",
            hint="Temporary files may take a quarter of the memory limit, outputs the workspace limit.",
            limit=0,
            actual=0,
        )
    return None


def _progress() -> Callable[[float, str], None]:
    """Return a function that writes progress lines to the descriptor the host reads, or nowhere."""
    descriptor, mark = os.environ.get("MODELIUM_PROGRESS_FD", ""), os.environ.get("MODELIUM_PROGRESS_MARK", "")
    if not descriptor.isdigit():
        return lambda fraction, message: None
    if not mark:  # with one it is the log, whose lines must not be lost
        os.set_blocking(int(descriptor), False)
    last = 0.0

    def write(fraction: float, message: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < _PROGRESS_EVERY_S and fraction < 1:
            return
        last = now
        line = f"{mark}{json.dumps({'fraction': min(1.0, max(0.0, float(fraction))), 'message': str(message)[:200]})}\n"
        with contextlib.suppress(OSError):  # a full pipe or a host that went away must not stop the step
            os.write(int(descriptor), line.encode())

    return write


def _is_forsaken() -> bool:
    """Whether the host that started this step has ended since: nobody has the other end of its progress any more."""
    poll = select.poll()
    with contextlib.suppress(KeyError, ValueError, OSError):
        poll.register(int(os.environ["MODELIUM_PROGRESS_FD"]), 0)
        return any(events & select.POLLERR for _, events in poll.poll(0))
    return False


def writable(workspace: Path) -> Iterator[Path]:
    """Yield what a step may change, and its process goes on being able to."""
    yield from (workspace / "out", Path(tempfile.gettempdir()))
    yield from map(Path, ("/dev/shm", "/dev/null", "/dev/zero", "/dev/full"))
    yield from Path("/dev").glob("nvidia*")  # where the sandbox shows a GPU


def _write(workspace: Path, result: StepResult) -> None:
    out = workspace / "out"
    out.mkdir(exist_ok=True)
    path = out / RESULT_FILE
    path.unlink(missing_ok=True)
    path.write_text(result.model_dump_json())


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -P -m executor.child WORKSPACE")
    if _is_forsaken():  # what ends a sandbox with its host may have come too early for this one
        sys.exit("The host of this step has ended.")
    landlock.restrict(path for path in writable(Path(sys.argv[1])) if path.exists())
    _write(Path(sys.argv[1]), main(Path(sys.argv[1])))
    sys.stdout.flush()
    sys.stderr.flush()
    if (done := os.environ.get(DONE_VARIABLE)) is not None:
        with contextlib.suppress(OSError):
            os.write(int(done), b"1")
    # Not sys.exit: tearing torch down takes longer than a small step, and a stray thread could hold it for ever.
    os._exit(0)
