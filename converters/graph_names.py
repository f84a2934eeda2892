"""Names of tensors inside an ONNX graph, changed wherever they stand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from converters.graph_walk import bodies

if TYPE_CHECKING:
    import onnx


def rename_uses(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Have every node read ``new`` that reads ``old``, also in branches and loops that have no ``old`` of their own."""
    for node in graph.node:
        if old in node.input:
            node.input[:] = [new if name == old else name for name in node.input]
        for body in bodies(node):
            own = {value.name for value in body.input} | {name for inner in body.node for name in inner.output}
            if old not in own:
                rename_uses(body, old, new)
                for value in body.output:
                    value.name = new if value.name == old else value.name


def rename_made(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Have the node that makes ``old`` make ``new``, and every node read that."""
    for node in graph.node:
        node.output[:] = [new if name == old else name for name in node.output]
    rename_uses(graph, old, new)
