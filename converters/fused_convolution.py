"""Convolutions that onnxruntime fused with their activation, taken apart again: no other tool knows them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

_ACTIVATION_NUMBERS = {"LeakyRelu": ("alpha",), "Clip": ("min", "max"), "HardSigmoid": ("alpha", "beta")}
"""What onnxruntime's FusedConv keeps in activation_params, in order."""


def take_apart(model: onnx.ModelProto) -> bool:
    """Take convolutions that onnxruntime fused with their activation apart again; return whether there were some."""
    import onnx

    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type != "FusedConv" or len(node.input) > 3:
            nodes.append(node)
            continue
        attributes = {a.name: a for a in node.attribute}
        activation = onnx.helper.get_attribute_value(attributes.pop("activation")).decode()
        numbers = attributes.pop("activation_params", None)
        values = list(numbers.floats) if numbers is not None else []
        between = f"{node.output[0]}_before_{activation}"
        conv = onnx.helper.make_node("Conv", list(node.input), [between], name=node.name)
        conv.attribute.extend(attributes.values())
        given: dict[str, Any] = dict(zip(_ACTIVATION_NUMBERS.get(activation, ()), values, strict=False))
        more = []
        if activation == "Clip":
            for name, value in given.items():
                more.append(f"{between}_{name}")
                model.graph.initializer.append(onnx.helper.make_tensor(more[-1], onnx.TensorProto.FLOAT, [], [value]))
            given = {}
        nodes += [conv, onnx.helper.make_node(activation, [between, *more], [node.output[0]], **given)]
    if len(nodes) == len(model.graph.node):
        return False
    kept = onnx.GraphProto(node=nodes)
    del model.graph.node[:]
    model.graph.node.extend(kept.node)
    return True
