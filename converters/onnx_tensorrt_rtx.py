"""ONNX to TensorRT-RTX engines, one a GPU architecture; built without any GPU, and therefore never run here."""

from __future__ import annotations

from pathlib import Path
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
from schemas.step_io import StepContext, StepOutcome
from schemas.step_options import TensorrtRtxOptions


def convert(context: StepContext) -> StepOutcome:
    """Build ``model.engine.<sm>`` for every architecture that the target names, beside the graph they are built from.

    The network is strongly typed: each tensor has the type that the graph gives it, so that an fp16 engine comes from
    an fp16 graph, whose answers can be compared. Architectures come from the options, else from the target.

    Raises Unsupported for an architecture that TensorRT-RTX has no code for, ConversionFailed when an engine cannot
    be built, and ToolchainMissing without the library.
    """
    trt = _library()
    options: TensorrtRtxOptions = context.options
    target = context.request.target
    wanted = _wanted(trt, options.sms or (target.gpu_architectures if target is not None else ()))
    source = onnx_file.find(context.input("model"), context.request.descriptor)
    context.progress(0.05, "Reading the graph")
    folder = context.out / onnx_file.OUTPUT_FOLDER
    file = onnx_file.save(onnx_file.load(source), folder)
    inputs, outputs = onnx_file.specs(file)
    inputs = named_axes(context, inputs)
    batch_sizes = target.batch_sizes if target is not None else (1, 8)
    profile = ranges(context, inputs, batch_sizes, options.most)
    engines = []
    for number, sm in enumerate(wanted):
        context.progress(0.2 + 0.7 * number / len(wanted), f"Building for {sm}")
        data = _engine(trt, file, sm, profile)
        path = folder / f"model.engine.{sm}"
        path.write_bytes(data)
        engines.append(EngineFile(file=path.name, sm=sm, sha256=sha256(data), size_bytes=len(data)))
    sheet = EngineSheet(
        builder="tensorrt-rtx",
        builder_version=str(trt.__version__),
        graph_sha256=graph_sha256(folder),
        engines=tuple(engines),
        profile=profile,
        inputs=inputs,
        outputs=outputs,
    )
    (folder / SHEET_FILE).write_text(sheet.model_dump_json(indent=1), encoding="utf-8")
    model = onnx_file.load(file)
    notes = [f"Built for {', '.join(wanted)} with TensorRT-RTX {trt.__version__}. No engine was run: there is no GPU."]
    notes += [
        f"Input {name!r}: {_shape(sizes.least)} to {_shape(sizes.most)}, tuned for {_shape(sizes.best)}."
        for name, sizes in profile.items()
    ]
    report = ConversionReport(
        opset=onnx_file.opset(model),
        operators=onnx_file.operators(model),
        inputs=inputs,
        outputs=outputs,
        size_bytes=sum(engine.size_bytes for engine in engines),
        notes=tuple(note[:500] for note in notes)[:50],
    )
    context.progress(1.0, "Built")
    return StepOutcome(report=report, outputs={"model": onnx_file.OUTPUT_FOLDER})


def _library() -> Any:
    try:
        import tensorrt_rtx
    except ImportError as error:
        raise ToolchainMissing(
            "TensorRT-RTX is not installed.", hint="Run: make setup TOOLCHAINS=tensorrt_rtx, then `modelium retry`."
        ) from error
    return tensorrt_rtx


def _wanted(trt: Any, sms: tuple[str, ...]) -> tuple[str, ...]:
    """Return ``sms``, each once. Raises Unsupported when there is none, or one that cannot be built for."""
    able = sorted(
        (f"sm_{name.removeprefix('SM')}" for name in trt.ComputeCapability.__members__ if name.startswith("SM")),
        key=lambda sm: int(sm.removeprefix("sm_")),
    )
    if not sms:
        raise Unsupported(
            "The target names no GPU architecture to build an engine for.",
            hint=f"Add it to the target, for example 'gpu_architectures: [{able[0]}]'; there are {', '.join(able)}.",
        )
    for sm in sms:
        if sm not in able:
            raise Unsupported(
                f"TensorRT-RTX {trt.__version__} builds no engine for {sm}.",
                hint=f"It builds for {', '.join(able)}. For others use TensorRT itself, or ONNX with onnxruntime-gpu.",
            )
    return tuple(dict.fromkeys(sms))


def _engine(trt: Any, file: Path, sm: str, profile: Any) -> bytes:
    complaints = Complaints(trt)
    builder = trt.Builder(complaints.logger)
    # A network belongs to one build; parsing it again takes milliseconds.
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network, parser = parse(trt, builder, file, complaints, flags=typed)
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.__members__[sm.replace("sm_", "SM")], 0)
    add_profile(builder, config, profile)
    data = build(builder, network, config, complaints, sm)
    del parser
    return data


def _shape(sizes: tuple[int, ...]) -> str:
    return "x".join(str(size) for size in sizes) or "one number"
