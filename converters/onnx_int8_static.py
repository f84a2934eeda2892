"""ONNX to ONNX with int8 weights and activations, as pairs of QuantizeLinear and DequantizeLinear, calibrated."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters import fused_convolution, graph_interface, onnx_file, onnx_optimize
from converters.batching import row_count
from converters.calibration import calibrated, calibration_rows, plain_ranges
from converters.model_errors import RAISED_BY_MODELS, first_line
from converters.quantization_rehearsal import REHEARSED_BYTES, Rehearsal
from converters.quantization_search import search
from converters.silence import quiet
from converters.trace_inputs import reference_cases
from schemas.errors import ConversionFailed
from schemas.step_io import StepContext, StepOutcome
from schemas.step_options import TRACED_OPSET, OnnxInt8StaticOptions

if TYPE_CHECKING:
    import onnx

_HEAVY = ("Conv", "ConvTranspose", "MatMul", "Gemm")
"""Operators that int8 makes faster."""
_BETWEEN = (
    "Add", "Mul", "Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "MaxPool", "AveragePool", "GlobalAveragePool",
    "Concat", "Resize", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Split", "Slice", "Pad",
)  # fmt: skip
"""Operators between convolutions that take int8 too, so that activations stay int8 from one to the next."""
_SEARCHED = (*_HEAVY, "Add", "Mul", "LeakyRelu", "Sigmoid", "HardSigmoid", "AveragePool", "GlobalAveragePool", "Concat")
_MIN_OPSET = 13
"""The first opset whose QuantizeLinear takes one scale per channel."""


def convert(context: StepContext) -> StepOutcome:
    """Quantise weights and activations of input ``model``; its inputs and outputs stay float.

    Activations are calibrated on the inputs of the reference: samples or sentences where there are any. Nodes that
    bring too much error for the target's tolerance stay float. Raises ConversionFailed when nothing can be quantised
    or there is nothing to calibrate on.
    """
    options: OnnxInt8StaticOptions = context.options
    source = onnx_file.find(context.input("model"), context.request.descriptor)
    context.progress(0.05, "Reading the ONNX model")
    inputs, outputs = onnx_file.specs(source)
    scratch = context.out / "scratch"
    try:
        model = _prepared(source, scratch, context.request.threads)
        kinds = _kinds(model)
        rows, real = calibration_rows(context)
        context.progress(0.15, f"Calibrating on {sum(row_count(feeds) for feeds in rows)} rows, {options.method}")
        ranges = calibrated(model, kinds, rows, options, scratch)

        def build(excluded: tuple[str, ...]) -> tuple[Path, onnx.ModelProto]:
            quantized = _quantize(model, kinds, ranges, options, excluded)
            return onnx_file.save(quantized, scratch / "quantized"), quantized

        def rehearse() -> Rehearsal | None:
            if onnx_file.size_bytes(model) > REHEARSED_BYTES:
                return None
            return Rehearsal(
                model,
                _searched_names(model, kinds),
                scratch / "rehearsal",
                per_channel=options.per_channel,
                reduce_range=options.reduce_range,
                ranges=plain_ranges(ranges),
                threads=context.request.threads,
            )

        context.progress(0.35, "Quantising weights and activations")
        found = search(context, build, rehearse)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    quantized = found.model
    onnx_file.drop_unused_opsets(quantized)
    graph_interface.restore_inputs(quantized, inputs)
    graph_interface.restore_outputs(quantized, [spec.name for spec in outputs])
    graph_interface.name_axes(quantized, inputs, outputs)
    heavy = sum(node.op_type in _HEAVY for node in quantized.graph.node)
    stay = sum(node.op_type in _HEAVY and node.name in found.excluded for node in quantized.graph.node)
    notes = [
        f"{heavy - stay} of {heavy} convolutions and matrix multiplications run in int8, calibrated by "
        f"{options.method} on {sum(row_count(feeds) for feeds in rows)} rows of {'real' if real else 'random'} inputs.",
        *found.notes,
    ]
    return onnx_file.finish(context, quantized, [case.feeds for case in reference_cases(context)], notes)


def _prepared(source: Path, scratch: Path, threads: int) -> onnx.ModelProto:
    """Return the model with constants folded and batch norms in the convolutions, without operators of onnxruntime's
    own that the quantiser does not know, and with the shapes of its tensors.
    """
    model = onnx_file.load(source)
    plain = fused_convolution.take_apart(model)
    if onnx_file.opset(model) < _MIN_OPSET:
        model, note, _ = onnx_optimize.change_opset(model, TRACED_OPSET, scratch / "raised")
        if onnx_file.opset(model) < _MIN_OPSET:
            raise ConversionFailed(f"Quantisation per channel needs opset {_MIN_OPSET}. {note}")
        plain = True
    if plain or onnx_file.has_data_files(source):
        source = onnx_file.save(model, scratch / "plain")
    big = onnx_file.size_bytes(model) > onnx_file.INLINE_BYTES
    model = onnx_file.load(onnx_optimize.optimize_file(source, scratch / "basic", "basic", threads=threads, big=big))
    onnx_file.name_nodes(model)
    onnx_file.tell_types(model)
    return model


def _kinds(model: onnx.ModelProto) -> list[str]:
    """Return the operators to quantise: all between convolutions too, of a transformer only those int8 makes faster.

    What lies between a transformer's matrix multiplications has a few values a thousand times the others.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    convolutions = sum(node.op_type in ("Conv", "ConvTranspose") for node in model.graph.node)
    products = sum(node.op_type in ("MatMul", "Gemm") and node.input[1] in weights for node in model.graph.node)
    if not convolutions + products:
        raise ConversionFailed(
            "The model has no convolution or matrix multiplication with constant weights to quantise."
        )
    return [*_HEAVY, *_BETWEEN] if convolutions >= products else [*_HEAVY]


def _searched_names(model: onnx.ModelProto, kinds: Sequence[str]) -> list[str]:
    """Return the nodes that bring an error of their own: those that only pass values on share their neighbour's."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if node.op_type in kinds
        and node.op_type in _SEARCHED
        and (node.op_type not in _HEAVY or (len(node.input) > 1 and node.input[1] in weights))
    ]


def _quantize(
    model: onnx.ModelProto, kinds: Sequence[str], ranges: Any, options: OnnxInt8StaticOptions, excluded: Sequence[str]
) -> onnx.ModelProto:
    import onnx
    from onnxruntime.quantization import QuantType

    from converters.channel_quantizer import StaticChannelQuantizer

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    try:
        with quiet():
            quantizer = StaticChannelQuantizer(
                copy,
                options.per_channel,
                options.reduce_range,
                QuantType.QInt8,
                QuantType.QUInt8 if options.activation_type == "uint8" else QuantType.QInt8,
                ranges,
                [],
                list(excluded),
                list(kinds),
                {"DefaultTensorType": onnx_file.FLOAT32, "MatMulConstBOnly": True},
            )
            quantizer.quantize_model()
    except RAISED_BY_MODELS as error:
        raise ConversionFailed(f"The quantiser failed: {first_line(error)}.") from error
    quantized: onnx.ModelProto = quantizer.model.model
    onnx_file.sort_nodes(quantized)
    free_outputs(quantized)
    return quantized


def free_outputs(model: onnx.ModelProto) -> None:
    """Take away the rounding of the model's own outputs: it makes nothing faster, and clips what calibration missed."""
    makers = {name: node for node in model.graph.node for name in node.output}
    used = Counter(name for node in model.graph.node for name in node.input)
    gone = []
    for value in model.graph.output:
        back = makers.get(value.name)
        there = makers.get(back.input[0]) if back is not None and back.op_type == "DequantizeLinear" else None
        if back is None or there is None or there.op_type != "QuantizeLinear" or used[value.name]:
            continue
        inner, maker = there.input[0], makers.get(there.input[0])
        if maker is None or used[back.input[0]] != 1 or used[inner] != 1:
            continue
        maker.output[list(maker.output).index(inner)] = value.name
        gone += [back, there]
    for node in gone:
        model.graph.node.remove(node)
