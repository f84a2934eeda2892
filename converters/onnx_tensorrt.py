"""ONNX to a TensorRT plan, built and timed on the GPU of this machine."""

from __future__ import annotations

import subprocess
from typing import Any

from converters import onnx_file
from converters.tensorrt_build import (
    SHEET_FILE,
    Complaints,
    add_profile,
    build,
    graph_sha256,
    named_axes,
    parse,
    ranges,
    sha256,
)
from schemas.engine import EngineFile, EngineSheet
from schemas.errors import ToolchainMissing, Unsupported
from schemas.evidence import ConversionReport
from schemas.precision import Precision
from schemas.step_io import StepContext, StepOutcome
from schemas.step_options import TensorrtOptions

MODEL_FILE = "model.plan"
TIMING_CACHE_FILE = "timing.cache"
_LEAST_CAPABILITY = {
    Precision.FP32: 0,
    Precision.FP16: 53,
    Precision.INT8: 61,
    Precision.BF16: 80,
    Precision.FP8: 89,
}
"""Least compute capability, times ten, whose tensor cores or units have the type (NVIDIA's support matrix)."""
_FLAGS = {Precision.FP16: "FP16", Precision.BF16: "BF16", Precision.INT8: "INT8", Precision.FP8: "FP8"}


def convert(context: StepContext) -> StepOutcome:
    """Build ``model.plan`` for this machine's GPU, with the timing cache that makes a second build quick.

    Raises ToolchainMissing without TensorRT, and Unsupported without a GPU, or for a precision that the GPU has no
    units for or that the graph was not quantised for.
    """
    trt = _library()
    options: TensorrtOptions = context.options
    capability = compute_capability()
    _check_ability(options.precision, capability)
    source = onnx_file.find(context.input("model"), context.request.descriptor)
    folder = context.out / onnx_file.OUTPUT_FOLDER
    context.progress(0.05, "Reading the graph")
    file = onnx_file.save(onnx_file.load(source), folder)
    model = onnx_file.load(file)
    operators = onnx_file.operators(model)
    if options.precision in (Precision.INT8, Precision.FP8) and "QuantizeLinear" not in operators:
        raise Unsupported(
            f"The graph has no quantised tensors, so an {options.precision.value} plan of it would compute in fp32.",
            hint="Quantise the graph first, with symmetric int8 scales.",
        )
    inputs, outputs = onnx_file.specs(file)
    inputs = named_axes(context, inputs)
    target = context.request.target
    profile = ranges(context, inputs, target.batch_sizes if target is not None else (1, 8), options.most)
    complaints = Complaints(trt)
    builder = trt.Builder(complaints.logger)
    network, parser = parse(trt, builder, file, complaints, flags=0)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.precision in _FLAGS:
        config.set_flag(getattr(trt.BuilderFlag, _FLAGS[options.precision]))
    cache = config.create_timing_cache(b"")
    config.set_timing_cache(cache, False)
    add_profile(builder, config, profile)
    context.progress(0.2, "Building and timing on the GPU")
    sm = f"sm_{capability}"
    data = build(builder, network, config, complaints, sm)
    del parser
    (folder / MODEL_FILE).write_bytes(data)
    (folder / TIMING_CACHE_FILE).write_bytes(bytes(config.get_timing_cache().serialize()))
    sheet = EngineSheet(
        builder="tensorrt",
        builder_version=str(trt.__version__),
        graph_sha256=graph_sha256(folder),
        engines=(EngineFile(file=MODEL_FILE, sm=sm, sha256=sha256(data), size_bytes=len(data)),),
        profile=profile,
        inputs=inputs,
        outputs=outputs,
    )
    (folder / SHEET_FILE).write_text(sheet.model_dump_json(indent=1), encoding="utf-8")
    report = ConversionReport(
        opset=onnx_file.opset(model),
        operators=operators,
        inputs=inputs,
        outputs=outputs,
        size_bytes=len(data),
        notes=(f"Built for {sm} with TensorRT {trt.__version__}; a plan runs on that architecture and version only.",),
    )
    return StepOutcome(report=report, outputs={"model": onnx_file.OUTPUT_FOLDER})


def compute_capability() -> int:
    """Return the first GPU's compute capability times ten, such as 86. Raises Unsupported where there is no GPU."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"],
            capture_output=True,
            check=True,
            text=True,
            timeout=30,
        )
        return int(float(done.stdout.splitlines()[0]) * 10 + 0.5)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        raise Unsupported(
            "TensorRT builds a plan on the GPU that runs it, and this machine shows none.",
            hint="Run Modelium on a machine with that GPU; or target tensorrt-rtx, which builds without one.",
        ) from error


def _check_ability(precision: Precision, capability: int) -> None:
    least = _LEAST_CAPABILITY.get(precision)
    if least is None or capability < least:
        raise Unsupported(
            f"A GPU of sm_{capability} has no units for {precision.value}.",
            hint="Name another precision in the target's 'precisions'.",
        )


def _library() -> Any:
    try:
        import tensorrt
    except ImportError as error:
        raise ToolchainMissing(
            "TensorRT is not installed.",
            hint="On a machine with an NVIDIA GPU, install it in an environment of its own (pip install tensorrt onnx "
            'numpy pydantic) and name that in MODELIUM_TOOLCHAINS, as {"tensorrt": "/path/to/bin/python"}.',
        ) from error
    return tensorrt
