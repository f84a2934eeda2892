"""ONNX to ONNX with int8 weights: per channel, offline; activations are quantised at run time."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from converters import graph_interface, int8_tables, onnx_file
from converters.model_errors import RAISED_BY_MODELS, first_line
from converters.onnx_int8_big import quantize_streamed
from converters.quantization_rehearsal import REHEARSED_BYTES, Rehearsal
from converters.quantization_search import search
from converters.silence import quiet
from converters.trace_inputs import reference_cases
from schemas.descriptor import TensorSpec
from schemas.errors import ConversionFailed
from schemas.step_io import StepContext, StepOutcome
from schemas.step_options import OnnxInt8Options

if TYPE_CHECKING:
    import onnx

_MATRIX_OPERATORS = ("MatMul", "Gemm", "Attention", "LSTM")
_TABLE_OPERATORS = ("EmbedLayerNormalization",)
"""Fused embeddings: their bytes shrink to a quarter, though nothing is multiplied."""
_INTEGER_OPERATORS = (
    "MatMulInteger",
    "QAttention",
    "DynamicQuantizeMatMul",
    "DynamicQuantizeLSTM",
    "MatMulIntegerToFloat",
)
"""What a quantised matrix multiplication becomes."""


def convert(context: StepContext) -> StepOutcome:
    """Quantise the constant weights of input ``model``. Names, order and axes of its tensors stay.

    Convolutions stay as they are: with activations quantised at run time they become slower, not faster. Where the
    result misses the target's tolerance on the reference, the nodes that bring most error stay float.
    Raises ConversionFailed when nothing can be quantised.
    """
    options: OnnxInt8Options = context.options
    source = onnx_file.find(context.input("model"), context.request.descriptor)
    context.progress(0.05, "Reading the ONNX model")
    apart = onnx_file.is_apart(source)
    model = onnx_file.load(source, weights=not apart)
    inputs, outputs = onnx_file.model_specs(model)
    matrices = quantizable(model)
    if not matrices:
        raise ConversionFailed(
            "The model has no MatMul or Gemm to quantise.",
            hint="int8 without calibration is for models that multiply matrices by constant weights.",
        )
    counts = onnx_file.operators(model)
    convolutions = counts.get("Conv", 0) + counts.get("com.microsoft::FusedConv", 0)
    if apart:
        context.progress(0.2, f"Quantising {matrices} matrix multiplications")
        return _finish(context, quantize_streamed(source, options), inputs, outputs, convolutions, [])
    onnx_file.name_nodes(model)
    tables = int8_tables.shrink(model)
    scratch = context.out / "quantized"
    context.progress(0.2, f"Quantising {matrices} matrix multiplications")

    def build(excluded: tuple[str, ...]) -> tuple[Path, onnx.ModelProto]:
        quantized = _quantize(model, options, excluded)
        shutil.rmtree(scratch, ignore_errors=True)
        return onnx_file.save(quantized, scratch), quantized

    def rehearse() -> Rehearsal | None:
        if onnx_file.size_bytes(model) > REHEARSED_BYTES:
            return None
        folder, threads = context.out / "rehearsal", context.request.threads
        return Rehearsal(
            model,
            _matrix_names(model),
            folder,
            per_channel=options.per_channel,
            reduce_range=options.reduce_range,
            threads=threads,
        )

    try:
        found = search(context, build, rehearse)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(context.out / "rehearsal", ignore_errors=True)
    more = [f"{tables} embedding tables are stored as int8, one scale per row."] if tables else []
    return _finish(context, found.model, inputs, outputs, convolutions, [*more, *found.notes])


def _finish(
    context: StepContext,
    quantized: onnx.ModelProto,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    convolutions: int,
    more: Sequence[str],
) -> StepOutcome:
    options: OnnxInt8Options = context.options
    onnx_file.drop_unused_opsets(quantized)
    graph_interface.restore_inputs(quantized, inputs)
    graph_interface.restore_outputs(quantized, [spec.name for spec in outputs])
    graph_interface.name_axes(quantized, inputs, outputs)
    done = onnx_file.operators(quantized)
    count = sum(done.get(name, 0) + done.get(f"com.microsoft::{name}", 0) for name in _INTEGER_OPERATORS)
    if not count:
        raise ConversionFailed(
            "The model has no MatMul or Gemm to quantise.", hint="The quantiser left every one of them as it is."
        )
    notes = [f"{count} matrix multiplications have int8 weights{', one scale per channel' * options.per_channel}."]
    if convolutions:
        notes.append(f"{convolutions} convolutions stay float32: they need calibrated quantisation to gain speed.")
    notes += more
    return onnx_file.finish(context, quantized, [case.feeds for case in reference_cases(context)], notes)


def _quantize(model: onnx.ModelProto, options: OnnxInt8Options, excluded: Sequence[str]) -> onnx.ModelProto:
    """Return what onnxruntime's ``quantize_dynamic`` makes of ``model``."""
    import onnx
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.quant_utils import QuantizationMode, update_opset_version

    from converters.channel_quantizer import DynamicChannelQuantizer

    weight_type = QuantType.QInt8 if options.weight_type == "int8" else QuantType.QUInt8
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    try:
        with quiet():
            copy = update_opset_version(copy, weight_type)
            quantizer = DynamicChannelQuantizer(
                copy,
                options.per_channel,
                options.reduce_range,
                QuantizationMode.IntegerOps,
                False,
                weight_type,
                QuantType.QUInt8,
                None,
                [],
                # The quantiser splits Gemm into MatMul and Add first, and gives the MatMul a name of its own.
                [part for name in excluded for part in (name, f"{name}_MatMul")],
                [*_MATRIX_OPERATORS, *_TABLE_OPERATORS],
                # Fused graphs hold operators that ONNX cannot infer types through.
                {"DefaultTensorType": onnx_file.FLOAT32, "MatMulConstBOnly": True},
            )
            quantizer.quantize_model()
    except RAISED_BY_MODELS as error:
        raise ConversionFailed(f"The quantiser failed: {first_line(error)}.") from error
    quantized: onnx.ModelProto = quantizer.model.model
    onnx_file.sort_nodes(quantized)
    return quantized


def quantizable(model: onnx.ModelProto) -> int:
    """Return how many matrix multiplications of the main graph have a constant weight."""
    return len(_matrix_names(model))


def _matrix_names(model: onnx.ModelProto) -> list[str]:
    weights = {tensor.name for tensor in model.graph.initializer}
    weights |= {node.output[0] for node in model.graph.node if node.op_type == "Constant"}
    return [
        node.name
        for node in model.graph.node
        if node.op_type in _MATRIX_OPERATORS and node.domain != "ai.onnx.ml" and node.input[1] in weights
    ]
