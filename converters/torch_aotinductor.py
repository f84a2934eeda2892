"""A torch original to machine code of this CPU: torch.export, then AOTInductor."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from converters import machine, torch_export, torch_source
from converters.aotinductor_runner import MODEL_FILE, AotInductorRunner
from converters.model_errors import RAISED_BY_MODELS, first_line
from converters.onnx_file import OUTPUT_FOLDER
from converters.silence import quiet
from converters.tensor_sheet import SHEET_FILE
from converters.torch_program import exported
from converters.trace_inputs import trace_cases
from schemas.errors import ConversionFailed, ToolchainMissing
from schemas.evidence import ConversionReport
from schemas.step_io import StepContext, StepOutcome
from schemas.step_options import AotInductorOptions

COMPILERS = ("g++", "clang++")


def convert(context: StepContext) -> StepOutcome:
    """Compile input ``model`` into ``model.pt2``, with ``tensors.json`` beside it.

    The package holds machine code for the CPU that runs the step, and is right on no other that lacks one of its
    instruction sets. With ``options.freeze`` weights are folded and packed into it.

    Raises ToolchainMissing without a C++ compiler and ConversionFailed when export or compilation fails, or the
    package froze a size; only ever in the sandbox.
    """
    import torch

    options: AotInductorOptions = context.options
    require_compiler()
    context.progress(0.05, "Loading the original")
    source = torch_source.load(context)
    cases = trace_cases(context)
    sheet = torch_export.sheet_of(context, source, cases[0])
    tensors = torch_export.feeds_of(source, cases[0])
    folder = context.out / OUTPUT_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    scratch = context.out / "compile"
    torch.set_num_threads(context.request.threads)
    context.progress(0.2, "Exporting the graph")
    try:
        with quiet(), torch.no_grad():
            program = exported(context, source, tensors)
            context.progress(0.4, "Compiling to machine code")
            _compile(program, folder / MODEL_FILE, scratch, freeze=options.freeze)
    except RAISED_BY_MODELS as error:
        raise ConversionFailed(f"AOTInductor failed: {first_line(error)}.") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    (folder / SHEET_FILE).write_text(sheet.model_dump_json(), encoding="utf-8")
    context.progress(0.8, "Running the package at sizes that were not traced")
    runner = AotInductorRunner(folder, threads=context.request.threads)
    torch_export.prove_run(source, cases, runner.run, "compiled package")
    here = machine.describe(threads=context.request.threads)
    flags = ", ".join(here.cpu_flags) or "no special instructions"
    notes = (
        *source.notes,
        f"Machine code for {here.cpu} ({flags}), written by torch {torch.__version__}; it is not for another CPU.",
        "Triton serves such packages with platform torch_aoti from its releases of 2026 on, not in 24.12.",
    )
    counts = Counter(str(node.target) for node in program.graph.nodes if node.op == "call_function")
    report = ConversionReport(
        operators=dict(sorted(counts.items())),
        inputs=sheet.inputs,
        outputs=sheet.outputs,
        size_bytes=sum(file.stat().st_size for file in folder.iterdir()),
        notes=tuple(note[:500] for note in notes)[:50],
    )
    context.progress(1.0, "Converted")
    return StepOutcome(report=report, outputs={"model": OUTPUT_FOLDER})


def require_compiler() -> None:
    """Raise ToolchainMissing when there is no C++ compiler on the path."""
    if not any(shutil.which(name) for name in COMPILERS):
        raise ToolchainMissing(
            "AOTInductor needs a C++ compiler, and there is none.",
            hint="Install one: apt-get install g++, then `modelium retry`.",
        )


def _compile(program: Any, package: Path, scratch: Path, *, freeze: bool) -> None:
    import torch
    import torch._inductor.config as inductor

    # Its caches go with the step, precompiled headers (350 MB) pay from the third file on, and compile workers would be
    # processes that nobody counts.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(scratch)
    with inductor.patch(freezing=freeze, compile_threads=1, cpp_cache_precompile_headers=False):
        torch._inductor.aoti_compile_and_package(program, package_path=str(package))
