"""Embedding tables as int8 with one scale per row: a quarter of their bytes, and hardly an error.

onnxruntime's own quantiser has one scale for the whole table, which costs a sentence model more than a matrix does.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from converters import onnx_file
from converters.graph_walk import all_nodes

if TYPE_CHECKING:
    import onnx

_LEAST_BYTES = 1 << 17
_LEAST_SHARE = 1 / 64
"""Of the model's weights. A smaller table is not worth the two operators more."""


def shrink(model: onnx.ModelProto) -> int:
    """Store the float32 tables that ``model`` only gathers rows from as int8, in place; return how many there were."""
    import onnx
    from onnx import numpy_helper

    onnx_file.name_nodes(model)
    total = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in all_nodes(model):
        for place, name in enumerate(node.input):
            if node.op_type != "Gather" or place != 0 or any(a.name == "axis" and a.i != 0 for a in node.attribute):
                readers[name].append(onnx.NodeProto())
            else:
                readers[name].append(node)
    shown = {value.name for value in model.graph.output}
    own = {node.name for node in model.graph.node}
    tables = []
    for tensor in model.graph.initializer:
        users = readers[tensor.name]
        big = len(tensor.raw_data) >= max(_LEAST_BYTES, total * _LEAST_SHARE)
        if (
            big
            and tensor.data_type == onnx_file.FLOAT32
            and len(tensor.dims) == 2
            and tensor.name not in shown
            and users
            and all(user.op_type == "Gather" and user.name in own for user in users)
        ):
            tables.append(tensor)
    for tensor in tables:
        values = numpy_helper.to_array(tensor)
        largest = np.maximum(values.max(axis=1, keepdims=True), -values.min(axis=1, keepdims=True))
        scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
        # In place: a table is the largest tensor of most models, and every copy of it costs as much as the arithmetic.
        scaled = values / scale
        np.clip(np.rint(scaled, out=scaled), -127, 127, out=scaled)
        rows = f"{tensor.name}_int8", scaled.astype(np.int8)
        scales = f"{tensor.name}_scale", scale
        for name, array in (rows, scales):
            model.graph.initializer.append(numpy_helper.from_array(array, name))
        nodes = []
        for node in model.graph.node:
            if node.op_type == "Gather" and node.input[0] == tensor.name:
                base, ids = node.name, node.input[1]
                nodes += [
                    onnx.helper.make_node("Gather", [rows[0], ids], [f"{base}_rows"], name=f"{base}_rows"),
                    onnx.helper.make_node("Gather", [scales[0], ids], [f"{base}_scales"], name=f"{base}_scales"),
                    onnx.helper.make_node("Cast", [f"{base}_rows"], [f"{base}_float"], name=f"{base}_float", to=1),
                    onnx.helper.make_node("Mul", [f"{base}_float", f"{base}_scales"], [node.output[0]], name=base),
                ]
            else:
                nodes.append(node)
        kept = onnx.GraphProto(node=nodes)
        del model.graph.node[:]
        model.graph.node.extend(kept.node)
        model.graph.initializer.remove(tensor)
    return len(tables)
