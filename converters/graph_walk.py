"""Every node and every graph of an ONNX model, those inside branches and loops among them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


def all_nodes(model: onnx.ModelProto) -> Iterable[onnx.NodeProto]:
    """Yield every node of the graph, its subgraphs and its local functions."""
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        yield from _walk(nodes)


def all_graphs(model: onnx.ModelProto) -> list[onnx.GraphProto]:
    """Return the graph and its subgraphs."""
    return [model.graph, *(body for node in all_nodes(model) for body in bodies(node))]


def bodies(node: onnx.NodeProto) -> Iterable[onnx.GraphProto]:
    """Yield the graphs that ``node`` holds: the branches of an If, the turn of a Loop."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _walk(nodes: Iterable[onnx.NodeProto]) -> Iterable[onnx.NodeProto]:
    for node in nodes:
        yield node
        for body in bodies(node):
            yield from _walk(body.node)
