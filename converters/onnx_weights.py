"""ONNX to ONNX with the weights of matrix multiplications in blocks of int4 or int8; activations stay float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

from converters import graph_interface, int8_tables, onnx_file
from converters.graph_walk import all_nodes
from converters.model_errors import RAISED_BY_MODELS, first_line
from converters.silence import quiet
from converters.trace_inputs import reference_cases
from schemas.catalog import entry
from schemas.errors import ConversionFailed
from schemas.precision import Precision
from schemas.step_io import StepContext, StepOutcome
from schemas.step_options import OnnxWeightsOptions

if TYPE_CHECKING:
    import onnx

_BITS = {Precision.INT4: 4, Precision.INT8: 8}
_PACKED = "com.microsoft::MatMulNBits"


def convert(context: StepContext) -> StepOutcome:
    """Store constant weights of input ``model`` with one scale per block; the step's kind says in how many bits.

    Raises ConversionFailed when there is no matrix multiplication by a constant float32 weight.
    """
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    options: OnnxWeightsOptions = context.options
    precision = entry(context.request.kind).precision
    bits = _BITS[precision] if precision else 4
    source = onnx_file.find(context.input("model"), context.request.descriptor)
    context.progress(0.05, "Reading the ONNX model")
    model = onnx_file.load(source)
    inputs, outputs = onnx_file.model_specs(model)
    onnx_file.name_nodes(model)
    split_gemm(model)
    tables = int8_tables.shrink(model)
    context.progress(0.3, f"Rounding weights to int{bits} in blocks of {options.block_size}")
    config = DefaultWeightOnlyQuantConfig(
        block_size=options.block_size,
        is_symmetric=options.symmetric,
        # None leaves the way of multiplying to the runtime.
        accuracy_level=options.accuracy_level or None,
        bits=bits,
    )
    try:
        with quiet():
            quantizer = MatMulNBitsQuantizer(model, algo_config=config)
            quantizer.process()
    except RAISED_BY_MODELS as error:
        raise ConversionFailed(f"The quantiser failed: {first_line(error)}.") from error
    packed: onnx.ModelProto = quantizer.model.model
    _import_microsoft(packed)
    onnx_file.drop_unused_opsets(packed)
    graph_interface.restore_inputs(packed, inputs)
    graph_interface.restore_outputs(packed, [spec.name for spec in outputs])
    graph_interface.name_axes(packed, inputs, outputs)
    count = onnx_file.operators(packed).get(_PACKED, 0)
    if not count:
        raise ConversionFailed(
            "The model has no MatMul by a constant float32 weight to compress.",
            hint="Weights in blocks are for transformers and other models made of matrix multiplications.",
        )
    notes = [f"{count} matrix multiplications have int{bits} weights, one scale for {options.block_size} of them."]
    if tables:
        notes.append(f"{tables} embedding tables are stored as int8, one scale per row.")
    return onnx_file.finish(context, packed, [case.feeds for case in reference_cases(context)], notes)


def split_gemm(model: onnx.ModelProto) -> None:
    """Write a Gemm that only multiplies and adds as MatMul and Add, in place: what is packed into blocks is MatMul."""
    import onnx
    from onnx import numpy_helper

    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        plain = given.get("alpha", 1.0) == given.get("beta", 1.0) == 1.0 and not given.get("transA")
        if node.op_type != "Gemm" or not plain or node.input[1] not in weights:
            nodes.append(node)
            continue
        name = node.input[1]
        if given.get("transB"):
            name = f"{node.name}_transposed"
            turned = numpy_helper.to_array(weights[node.input[1]]).T.copy()
            model.graph.initializer.append(numpy_helper.from_array(turned, name))
        added = len(node.input) > 2 and bool(node.input[2])
        product = f"{node.output[0]}_product" if added else node.output[0]
        nodes.append(onnx.helper.make_node("MatMul", [node.input[0], name], [product], name=node.name))
        if added:
            end = onnx.helper.make_node("Add", [product, node.input[2]], [node.output[0]], name=f"{node.name}_add")
            nodes.append(end)
    kept = onnx.GraphProto(node=nodes)
    del model.graph.node[:]
    model.graph.node.extend(kept.node)
    used = {name for node in all_nodes(model) for name in node.input}
    used |= {value.name for value in model.graph.output}
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name not in used]:
        model.graph.initializer.remove(tensor)


def _import_microsoft(model: onnx.ModelProto) -> None:
    import onnx

    if not any(entry.domain == "com.microsoft" for entry in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
