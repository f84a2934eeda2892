"""Operators of ONNX that it does not define by others itself, written in older ones that give exactly the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from converters import onnx_file
from converters.graph_walk import all_graphs

if TYPE_CHECKING:
    import onnx

_ONNX = ("", "ai.onnx")


def write_out(model: onnx.ModelProto, newer: Sequence[str]) -> None:
    """Replace the nodes of ``model`` that are among ``newer`` and have an older form here; leave the others."""
    forms = {name: _FORMS[name] for name in newer if name in _FORMS}
    if not forms:
        return
    types = _element_types(model)
    taken = 0
    # What is inside first: a graph whose nodes change gets new ones, with new graphs inside them.
    for graph in [*reversed(all_graphs(model)), *model.functions]:
        nodes: list[onnx.NodeProto] = []
        for node in graph.node:
            form = forms.get(node.op_type) if node.domain in _ONNX else None
            writer = _Writer(f"{node.op_type}_{taken}", node, types)
            if form is None or not form(writer):
                nodes.append(node)
                continue
            nodes += writer.nodes
            taken += 1
        del graph.node[:]
        graph.node.extend(nodes)


class _Writer:
    """Nodes that stand for one."""

    def __init__(self, prefix: str, node: onnx.NodeProto, types: dict[str, int]) -> None:
        self.prefix, self.node, self.types = prefix, node, types
        self.nodes: list[onnx.NodeProto] = []

    def attribute(self, name: str, default: Any) -> Any:
        from onnx import helper

        found = [helper.get_attribute_value(item) for item in self.node.attribute if item.name == name]
        return found[0] if found else default

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        from onnx import helper

        name = f"{self.prefix}_{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output or name], name=name, **attributes))
        return output or name

    def number(self, value: int) -> str:
        """Return one whole number, without an axis."""
        from onnx import numpy_helper

        return self.add("Constant", value=numpy_helper.from_array(np.array(value, np.int64)))

    def whole(self, *values: int) -> str:
        """Return a list of whole numbers."""
        from onnx import numpy_helper

        return self.add("Constant", value=numpy_helper.from_array(np.array(values, np.int64)))

    def part(self, shape: str, start: str, end: str) -> str:
        """Return the product of a part of ``shape``, 1 for none, as a list of one number."""
        sizes = self.add("Concat", self.whole(1), self.add("Slice", shape, start, end), axis=0)
        return self.add("ReduceProd", sizes, keepdims=1)


_END = 1 << 31
"""Beyond the last axis of any shape."""


def _cumulated(writer: _Writer) -> bool:
    """CumProd: a Scan along the axis, with all axes before it made one, and all behind it.

    The axis may be known only when the graph runs, which a Scan does not take.
    """
    from onnx import helper

    values, kind = writer.node.input[0], writer.types.get(writer.node.input[0])
    if kind is None:
        return False
    shape = writer.add("Shape", values)
    axis = writer.add("Reshape", writer.node.input[1], writer.whole(1))
    axis = writer.add("Cast", axis, to=helper.np_dtype_to_tensor_dtype(np.dtype(np.int64)))
    rank = writer.add("Shape", shape)
    axis = writer.add("Mod", writer.add("Add", axis, rank), rank)
    behind = writer.add("Add", axis, writer.whole(1))
    before = writer.part(shape, writer.whole(0), axis)
    after = writer.part(shape, behind, writer.whole(_END))
    length = writer.add("Slice", shape, axis, behind)
    table = writer.add("Reshape", values, writer.add("Concat", before, length, after, axis=0), allowzero=1)
    one = writer.add("Cast", writer.whole(1), to=kind)
    ones = writer.add("Expand", one, writer.add("Concat", before, after, axis=0))
    product, row, grown, given = (f"{writer.prefix}_{name}" for name in ("product", "row", "grown", "given"))
    body = helper.make_graph(
        [
            helper.make_node("Mul", [product, row], [grown]),
            helper.make_node("Identity", [product if writer.attribute("exclusive", 0) else grown], [given]),
        ],
        f"{writer.prefix}_turn",
        [helper.make_tensor_value_info(name, kind, ["before", "after"]) for name in (product, row)],
        [helper.make_tensor_value_info(name, kind, ["before", "after"]) for name in (grown, given)],
    )
    direction = 1 if writer.attribute("reverse", 0) else 0
    last, scanned = f"{writer.prefix}_last", f"{writer.prefix}_scanned"
    writer.nodes.append(
        helper.make_node(
            "Scan",
            [ones, table],
            [last, scanned],
            name=f"{writer.prefix}_scan",
            body=body,
            num_scan_inputs=1,
            scan_input_axes=[1],
            scan_output_axes=[1],
            scan_input_directions=[direction],
            scan_output_directions=[direction],
        )
    )
    writer.add("Reshape", scanned, shape, output=writer.node.output[0], allowzero=1)
    return True


def _scattered(writer: _Writer) -> bool:
    """TensorScatter: ScatterElements along the axis, with all axes between the batch and it made one, and all behind.

    Every row of the batch has a place of its own to begin at.
    """
    past, update = writer.node.input[:2]
    begins = writer.node.input[2] if len(writer.node.input) > 2 else ""
    axis = int(writer.attribute("axis", -2))
    circular = writer.attribute("mode", b"linear") == b"circular"

    def four(tensor: str, shape: str) -> tuple[str, str]:
        """Return ``tensor`` as (batch, between, length, behind), and its length."""
        length = writer.add("Slice", shape, writer.whole(axis), writer.whole(axis + 1 or _END))
        sizes = writer.add(
            "Concat", writer.add("Slice", shape, writer.whole(0), writer.whole(1)),
            writer.part(shape, writer.whole(1), writer.whole(axis)), length,
            writer.part(shape, writer.whole(axis + 1 or _END), writer.whole(_END)), axis=0,
        )  # fmt: skip
        return writer.add("Reshape", tensor, sizes, allowzero=1), length

    shape = writer.add("Shape", past)
    cache, longest = four(past, shape)
    rows, length = four(update, writer.add("Shape", update))
    scalar = writer.whole()
    places = writer.add("Range", writer.number(0), writer.add("Reshape", length, scalar), writer.number(1))
    places = writer.add("Reshape", places, writer.whole(1, 1, -1, 1))
    if begins:
        places = writer.add("Add", writer.add("Reshape", begins, writer.whole(-1, 1, 1, 1)), places)
    if circular:
        places = writer.add("Mod", places, longest)
    places = writer.add("Expand", places, writer.add("Shape", rows))
    scattered = writer.add("ScatterElements", cache, places, rows, axis=2)
    writer.add("Reshape", scattered, shape, output=writer.node.output[0], allowzero=1)
    return True


def _reinterpreted(writer: _Writer) -> bool:
    """BitCast among whole numbers of one width: a Cast, of which ONNX says that it keeps as many bits as there is room.

    Nothing older reads or makes a float's bits: the payload of a NaN is out of arithmetic's reach.
    """
    from onnx import TensorProto

    kind, wanted = writer.types.get(writer.node.input[0]), int(writer.attribute("to", 0))
    whole = [
        {TensorProto.INT8, TensorProto.UINT8}, {TensorProto.INT16, TensorProto.UINT16},
        {TensorProto.INT32, TensorProto.UINT32}, {TensorProto.INT64, TensorProto.UINT64},
    ]  # fmt: skip
    from_bool = kind == TensorProto.BOOL and wanted in whole[0]
    if kind != wanted and not from_bool and not any({kind, wanted} <= pair for pair in whole):
        return False
    writer.add("Cast", writer.node.input[0], output=writer.node.output[0], to=wanted)
    return True


_FORMS: dict[str, Callable[[_Writer], bool]] = {
    "BitCast": _reinterpreted,
    "CumProd": _cumulated,
    "TensorScatter": _scattered,
}


def _element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Return the element type of every tensor whose type is told or can be."""
    typed = onnx_file.infer_types(model)
    types: dict[str, int] = {}
    for graph in all_graphs(typed):
        for value in (*graph.value_info, *graph.input, *graph.output):
            if value.type.tensor_type.elem_type:
                types[value.name] = value.type.tensor_type.elem_type
        types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    return types
