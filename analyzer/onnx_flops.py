"""Count floating-point operations of an ONNX graph from shapes, following the common layers."""

from __future__ import annotations

import math
from typing import Any

Shapes = dict[str, list[int | str]]

_SAME_SHAPE = frozenset(
    {"Relu", "LeakyRelu", "Sigmoid", "Tanh", "Softmax", "LogSoftmax", "Clip", "Gelu", "Erf", "Sqrt", "Exp", "Log"}
    | {"Neg", "Abs", "Identity", "Dropout", "Cast", "Elu", "Selu", "HardSigmoid", "HardSwish", "Softplus", "Mish"}
    | {"BatchNormalization", "LayerNormalization", "InstanceNormalization", "PRelu"}
)
_BROADCAST = frozenset({"Add", "Sub", "Mul", "Div", "Pow"})
MAX_NODES = 50_000


def count(graph: Any, shapes: Shapes) -> int | None:
    """Return the operations of Conv, Gemm and MatMul (two for each multiply-add); None when a shape is missing.

    ``shapes`` holds what is declared, with 1 for the batch axis; shapes of common layers in between are worked out.
    """
    if len(graph.node) > MAX_NODES:
        return None
    shapes = dict(shapes)
    total = 0
    for node in graph.node:
        known = [shapes.get(name) for name in node.input]
        made = _shape(node, known)
        if made is not None and node.output and not _fixed(shapes.get(node.output[0])):
            shapes[node.output[0]] = list(made)
        if node.op_type in ("Conv", "Gemm", "MatMul", "ConvTranspose"):
            cost = _cost(node, known, shapes.get(node.output[0]) if node.output else None)
            if cost is None:
                return None
            total += cost
        elif node.op_type in ("Loop", "If", "Scan", "LSTM", "GRU", "RNN", "Einsum", "Attention", "MultiHeadAttention"):
            return None
    return total or None


def _fixed(shape: list[int | str] | None) -> list[int] | None:
    if shape is None:
        return None
    sizes = [n for n in shape if isinstance(n, int)]
    return sizes if len(sizes) == len(shape) else None


def _attributes(node: Any) -> dict[str, Any]:
    return {a.name: list(a.ints) if a.type == 7 else a.i for a in node.attribute if a.type in (2, 7)}


def _cost(node: Any, known: list[list[int | str] | None], out: list[int | str] | None) -> int | None:
    made = _fixed(out)
    left = _fixed(known[0]) if known else None
    right = _fixed(known[1]) if len(known) > 1 else None
    if node.op_type == "ConvTranspose":
        return 2 * math.prod(left) * math.prod(right[1:]) if left and right else None
    if made is None or not right:
        return None
    if node.op_type == "Conv":
        return 2 * math.prod(made) * math.prod(right[1:])
    if node.op_type == "Gemm" and _attributes(node).get("transB"):
        return 2 * math.prod(made) * right[-1]
    return 2 * math.prod(made) * right[-2 if len(right) > 1 else 0]


def _shape(node: Any, known: list[list[int | str] | None]) -> list[int] | None:
    first = _fixed(known[0]) if known else None
    second = _fixed(known[1]) if len(known) > 1 else None
    if first is None:
        return None
    if node.op_type in _SAME_SHAPE:
        return first
    attributes = _attributes(node)
    match node.op_type:
        case "Conv" if second is not None and len(first) > 2 and len(first) == len(second):
            spatial = _window(first[2:], second[2:], attributes)
            return None if spatial is None else [first[0], second[0], *spatial]
        case "MaxPool" | "AveragePool" if len(first) > 2:
            spatial = _window(first[2:], attributes.get("kernel_shape", []), attributes)
            return None if spatial is None else [*first[:2], *spatial]
        case "GlobalAveragePool" | "GlobalMaxPool" if len(first) > 2:
            return [*first[:2], *([1] * (len(first) - 2))]
        case "ReduceMean" | "ReduceSum" | "ReduceMax" if isinstance(attributes.get("axes"), list):
            gone = {axis % len(first) for axis in attributes["axes"]} if first else set()
            if attributes.get("keepdims", 1):
                return [1 if axis in gone else size for axis, size in enumerate(first)]
            return [size for axis, size in enumerate(first) if axis not in gone]
        case "Transpose" if sorted(attributes.get("perm") or ()) == list(range(len(first))):
            return [first[axis] for axis in attributes["perm"]]
        case "Flatten":
            axis = attributes.get("axis", 1)
            if not isinstance(axis, int) or not 0 <= axis <= len(first):
                return None
            return [math.prod(first[:axis]), math.prod(first[axis:])]
        case "Gemm" if second is not None and len(first) == len(second) == 2:
            return [first[1 if attributes.get("transA") else 0], second[0 if attributes.get("transB") else 1]]
        case "MatMul" if second is not None and len(first) > 1 and len(second) == 2:
            return [*first[:-1], second[-1]]
    if node.op_type in _BROADCAST and second is not None:
        return _broadcast(first, second)
    return None


def _window(sizes: list[int], kernel: Any, attributes: dict[str, Any]) -> list[int] | None:
    rank = len(sizes)
    strides = attributes.get("strides", [1] * rank)
    dilations = attributes.get("dilations", [1] * rank)
    pads = attributes.get("pads", [0] * (2 * rank))
    if any(not isinstance(x, list) for x in (kernel, strides, dilations, pads)):
        return None
    if len(kernel) != rank or len(strides) != rank or len(dilations) != rank or len(pads) != 2 * rank:
        return None
    if min(strides, default=1) < 1 or attributes.get("ceil_mode"):
        return None
    made = [
        (size + pads[i] + pads[i + rank] - dilations[i] * (kernel[i] - 1) - 1) // strides[i] + 1
        for i, size in enumerate(sizes)
    ]
    return made if min(made, default=1) > 0 else None


def _broadcast(left: list[int], right: list[int]) -> list[int] | None:
    rank = max(len(left), len(right))
    a, b = [1] * (rank - len(left)) + left, [1] * (rank - len(right)) + right
    if any(x != y and 1 not in (x, y) for x, y in zip(a, b, strict=True)):
        return None
    return [max(x, y) if 0 not in (x, y) else 0 for x, y in zip(a, b, strict=True)]
