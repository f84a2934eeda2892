"""ONNX to ONNX in float16: half the bytes. Inputs and outputs stay float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

from converters import graph_interface, onnx_file
from converters.graph_walk import all_nodes
from converters.model_errors import RAISED_BY_MODELS, first_line
from converters.silence import quiet
from converters.trace_inputs import reference_cases
from schemas.errors import ConversionFailed
from schemas.step_io import StepContext, StepOutcome
from schemas.step_options import OnnxFp16Options

if TYPE_CHECKING:
    import onnx

_SENSITIVE = (
    "SkipLayerNormalization",
    "LayerNormalization",
    "Softmax",
    "ReduceL2",
    "Pow",
)
"""Sums of squares and exponentials leave the range of float16, which ends at 65504."""


def convert(context: StepContext) -> StepOutcome:
    """Store and compute input ``model`` in float16, except what has no float16 or leaves its range.

    Raises ConversionFailed when it holds no float32 weights or onnxruntime refuses the result.
    """
    from onnxruntime.transformers import float16

    options: OnnxFp16Options = context.options
    source = onnx_file.find(context.input("model"), context.request.descriptor)
    context.progress(0.05, "Reading the ONNX model")
    model = onnx_file.load(source)
    inputs, outputs = onnx_file.model_specs(model)
    floats = weights(model, onnx_file.FLOAT32)
    if not floats:
        raise ConversionFailed("The model has no float32 weights that float16 could make smaller.")
    blocked = sorted({*float16.DEFAULT_OP_BLOCK_LIST, *_SENSITIVE, *options.keep_float32})
    context.progress(0.3, f"Rounding {floats} weights to float16")
    try:
        with quiet():
            half: onnx.ModelProto = float16.convert_float_to_float16(
                onnx_file.infer_types(model),
                keep_io_types=True,
                disable_shape_infer=True,
                op_block_list=blocked,
            )
    except RAISED_BY_MODELS as error:
        raise ConversionFailed(f"The float16 converter failed: {first_line(error)}.") from error
    onnx_file.sort_nodes(half)
    onnx_file.drop_unused_opsets(half)
    graph_interface.restore_inputs(half, inputs)
    graph_interface.restore_outputs(half, [spec.name for spec in outputs])
    graph_interface.name_axes(half, inputs, outputs)
    kept = sorted({node.op_type for node in all_nodes(half) if node.op_type in blocked})
    count = weights(half, onnx_file.FLOAT16)
    notes = [f"{count} of {floats} weights are stored as float16; inputs and outputs stay float32."]
    if kept:
        notes.append(f"In float32, as their sums leave float16's range or they have no float16: {', '.join(kept)}.")
    return onnx_file.finish(context, half, [case.feeds for case in reference_cases(context)], notes)


def weights(model: onnx.ModelProto, element_type: int) -> int:
    """Return how many weights of ``element_type`` the main graph has."""
    return sum(tensor.data_type == element_type for tensor in model.graph.initializer)
