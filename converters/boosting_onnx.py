"""XGBoost, LightGBM and CatBoost models to ONNX: their trees as one operator, and what the objective makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from converters import graph_interface, onnx_file
from converters.arrays import Array
from converters.boosting_outputs import write_outputs
from converters.boosting_runner import TABLE_INPUT, Booster, BoostingRunner, load_booster
from converters.forest import GraphWriter, write_margins
from converters.trace_inputs import trace_cases
from schemas.catalog import SERVED_IR
from schemas.errors import ConversionFailed
from schemas.step_io import StepContext, StepOutcome

if TYPE_CHECKING:
    import onnx

ML_OPSET = 3
"""Of ai.onnx.ml: the newest that every onnxruntime Triton ships with reads."""


class GraphNodes:
    """A GraphWriter that keeps nodes and initializers for a graph of our own."""

    def __init__(self) -> None:
        """Start with none."""
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def node(self, op_type: str, inputs: Sequence[str], *, domain: str = "", **attributes: Any) -> str:
        """Add a node and return the name of its one output."""
        from onnx import helper

        output = f"{op_type}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [output], domain=domain, **attributes))
        return output

    def constant(self, array: Array) -> str:
        """Add an initializer and return its name."""
        from onnx import helper, numpy_helper

        name = f"constant_{len(self.initializers)}"
        if array.dtype.kind in "OUS":
            texts: Any = [str(value).encode() for value in array.reshape(-1)]
            tensor = helper.make_tensor(name, 8, list(array.shape), texts)
        else:
            tensor = numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
        self.initializers.append(tensor)
        return name


def convert(context: StepContext) -> StepOutcome:
    """Convert input ``model``, with the descriptor's inputs and outputs.

    Every comparison keeps the answer it has in the library for every float32 value, missing ones too. Raises
    ConversionFailed, with the cause, for features and leaves that ONNX has no operator for.
    """
    descriptor = context.request.descriptor
    if descriptor is None or not descriptor.inputs:
        raise ValueError("boosting_onnx needs a descriptor with inputs")
    path = context.input("model")
    file = path / descriptor.entry if path.is_dir() and descriptor.entry else path
    context.progress(0.05, "Loading the model")
    booster = load_booster(file, descriptor.format, threads=context.request.threads)
    context.progress(0.3, "Writing its trees as ONNX")
    model = graph_of(booster, context.options.opset)
    graph_interface.restore_outputs(model, [spec.name for spec in descriptor.outputs])
    graph_interface.name_axes(model, descriptor.inputs, descriptor.outputs)
    cases = [case.feeds for case in trace_cases(context, BoostingRunner(booster).domains)]
    return onnx_file.finish(context, model, cases, [])


def graph_of(booster: Booster, opset: int) -> onnx.ModelProto:
    """Return the model whose one input is the table and whose outputs have the names of ``booster.outputs``."""
    from onnx import helper

    writer = GraphNodes()
    linear = booster.linear()
    if linear is not None:
        margins, targets = _linear(writer, *linear), len(linear[1])
    else:
        forest = booster.forest()
        if forest.width != booster.width:
            raise ConversionFailed(f"The trees take {forest.width} features, and the model {booster.width}.")
        margins, targets = write_margins(writer, forest, TABLE_INPUT), len(forest.base)
    given = write_outputs(writer, booster.outputs, margins, targets)
    outputs = []
    for name, tensor in given.items():
        writer.nodes.append(helper.make_node("Identity", [tensor], [name]))
        columns = 2 if name == "probabilities" and targets == 1 else targets
        element = onnx_file.FLOAT32
        shape: list[str | int] = ["batch", columns]
        if name == "label":
            strings = booster.outputs.classes.dtype.kind == "U" and booster.outputs.task == "classification"
            element = 8 if strings else onnx_file.INT64
            shape = ["batch"] if booster.outputs.task == "classification" else shape
        outputs.append(helper.make_tensor_value_info(name, element, shape))
    table = helper.make_tensor_value_info(TABLE_INPUT, onnx_file.FLOAT32, ["batch", booster.width])
    graph = helper.make_graph(writer.nodes, "model", [table], outputs, writer.initializers)
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", ML_OPSET)],
        producer_name="modelium",
        ir_version=SERVED_IR,
    )


def _linear(writer: GraphWriter, weights: Array, bias: Array) -> str:
    zero = writer.constant(np.zeros(1, np.float32))
    # A missing feature adds nothing.
    table = writer.node("Where", [writer.node("IsNaN", [TABLE_INPUT]), zero, TABLE_INPUT])
    product = writer.node("MatMul", [table, writer.constant(weights.astype(np.float32))])
    return writer.node("Add", [product, writer.constant(bias.astype(np.float32)[None])])
