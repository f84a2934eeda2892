"""ZipMap, the last step of most classifiers in ONNX: a list with a map from class to probability for each row."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


def zip_maps(graph: onnx.GraphProto) -> dict[str, tuple[int | str, ...]]:
    """Return the graph's outputs that ZipMap gives, with the classes in the order of the tensor that it takes."""
    outputs = {value.name for value in graph.output}
    return {
        node.output[0]: tuple(
            label.decode("utf-8", "replace") if isinstance(label, bytes) else int(label)
            for attribute in node.attribute
            for label in (*attribute.strings, *attribute.ints)
        )
        for node in graph.node
        if node.op_type == "ZipMap" and node.domain == "ai.onnx.ml" and len(node.output) == 1
        if node.output[0] in outputs
    }


def drop_zip_maps(model: onnx.ModelProto) -> bool:
    """Give the tensors that ZipMap takes in the place of its outputs; return whether there were some."""
    import onnx

    classes = zip_maps(model.graph)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        zipped = node.op_type == "ZipMap" and node.output[0] in classes
        nodes.append(onnx.helper.make_node("Identity", [node.input[0]], [node.output[0]]) if zipped else node)
    for value in model.graph.output:
        if value.name in classes:
            shape = [None, len(classes[value.name])]
            value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, onnx.TensorProto.FLOAT, shape))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return bool(classes)
