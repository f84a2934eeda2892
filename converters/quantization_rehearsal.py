"""Rehearsal: a float copy of a model in which every node can be run as if it were quantised, one by one or together.

Weights and activations are rounded to int8 and back where they enter a node, behind a switch of the node's own. One
session then tells what error each node brings to the model's outputs, without a quantised model being built for each.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from converters import onnx_file
from converters.arrays import Array, Arrays

if TYPE_CHECKING:
    import onnx

_SWITCH = "modelium_switch"
_WEIGHT_AXIS = {"Conv": 0, "ConvTranspose": 1, "MatMul": -1, "Gemm": 1, "Attention": 1}
"""Operator to the axis of its weight that has one scale per channel."""
REHEARSED_BYTES = 1 << 30
"""Weights of a model above it are not rehearsed: the copy holds them twice, beside the model itself."""
Ranges = Mapping[str, tuple[float, float]]


class Rehearsal:
    """One onnxruntime session over the copy.

    ``nodes`` are the names that can be switched, ``costs`` the bytes that each keeps in float when it is left out, at
    least the median of those that have weights.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        nodes: Sequence[str],
        scratch: Path,
        *,
        per_channel: bool,
        reduce_range: bool = False,
        ranges: Ranges | None = None,
        threads: int = 1,
    ) -> None:
        """Build the copy of ``model`` below ``scratch``.

        ``reduce_range`` rounds weights to 7 bits. ``ranges`` are the calibrated least and largest values of
        activations; None quantises them by what each run has.
        Raises ConversionFailed when onnxruntime refuses the copy.
        """
        self.nodes = tuple(nodes)
        self.costs = _costs(model, self.nodes)
        copy = _with_switches(model, self.nodes, per_channel, ranges, 63 if reduce_range else 127)
        self._session = onnx_file.session(onnx_file.save(copy, scratch), threads=threads)

    def run(self, feeds: Mapping[str, Array], quantized: Collection[str]) -> Arrays:
        """Return the outputs with the nodes ``quantized`` rounded and all others in float."""
        switch = np.array([name in quantized for name in self.nodes])
        return onnx_file.run(self._session, {**feeds, _SWITCH: switch})


def _costs(model: onnx.ModelProto, nodes: Sequence[str]) -> dict[str, float]:
    sizes = {tensor.name: 4.0 * float(np.prod(tensor.dims)) for tensor in model.graph.initializer}
    wanted = set(nodes)
    own = {n.name: sum(sizes.get(name, 0.0) for name in n.input) for n in model.graph.node if n.name in wanted}
    least = float(np.median([size for size in own.values() if size] or [1.0]))
    return {name: max(own[name], least) for name in nodes}


def _with_switches(
    model: onnx.ModelProto, nodes: Sequence[str], per_channel: bool, ranges: Ranges | None, largest: int
) -> onnx.ModelProto:
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    graph.input.append(onnx.helper.make_tensor_value_info(_SWITCH, onnx.TensorProto.BOOL, [len(nodes)]))
    number = {name: i for i, name in enumerate(nodes)}
    made: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.name in number:
            writer = _Writer(graph, made, f"modelium_{number[node.name]}", number[node.name])
            for place, name in enumerate(node.input):
                if place == 1 and name in weights:
                    axis = _axis(node) if per_channel else None
                    node.input[place] = writer.weight(place, weights[name], axis, largest)
                elif name and name not in weights:
                    node.input[place] = writer.activation(place, name, ranges)
        made.append(node)
    kept = onnx.GraphProto(node=made)
    del graph.node[:]
    graph.node.extend(kept.node)
    return copy


def _axis(node: onnx.NodeProto) -> int | None:
    if node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute):
        return 0
    return _WEIGHT_AXIS.get(node.op_type)


class _Writer:
    """Writes one node's switch and the rounding of its inputs."""

    def __init__(self, graph: onnx.GraphProto, nodes: list[onnx.NodeProto], prefix: str, number: int) -> None:
        self._graph, self._nodes, self._prefix = graph, nodes, prefix
        index = self._constant("index", np.array(number, np.int64))
        self._switch = self._node("Gather", [_SWITCH, index], "switch")

    def weight(self, place: int, tensor: onnx.TensorProto, axis: int | None, largest: int) -> str:
        """Return the name of the weight, rounded when the switch is on."""
        from onnx import numpy_helper

        rounded = self._constant(f"weight_{place}", rounded_weight(numpy_helper.to_array(tensor), axis, largest))
        return self._node("Where", [self._switch, rounded, tensor.name], f"input_{place}")

    def activation(self, place: int, name: str, ranges: Ranges | None) -> str:
        """Return the name of the activation, rounded when the switch is on; as it is when nothing is known of it."""
        if ranges is None:
            parts = [f"{self._prefix}_{part}_{place}" for part in ("quantized", "scale", "zero")]
            self._nodes.append(_make("DynamicQuantizeLinear", [name], parts))
        elif name in ranges:
            scale, zero = scale_and_zero(*ranges[name])
            stored = [
                self._constant(f"scale_{place}", np.array(scale, np.float32)),
                self._constant(f"zero_{place}", np.array(zero, np.uint8)),
            ]
            parts = [self._node("QuantizeLinear", [name, *stored], f"quantized_{place}"), *stored]
        else:
            return name
        back = self._node("DequantizeLinear", parts, f"back_{place}")
        return self._node("Where", [self._switch, back, name], f"input_{place}")

    def _constant(self, name: str, value: Array) -> str:
        from onnx import numpy_helper

        full = f"{self._prefix}_{name}"
        self._graph.initializer.append(numpy_helper.from_array(value, full))
        return full

    def _node(self, kind: str, inputs: Sequence[str], output: str) -> str:
        full = f"{self._prefix}_{output}"
        self._nodes.append(_make(kind, inputs, [full]))
        return full


def _make(kind: str, inputs: Sequence[str], outputs: Sequence[str]) -> Any:
    import onnx

    return onnx.helper.make_node(kind, list(inputs), list(outputs), name=outputs[0])


def rounded_weight(weight: Array, axis: int | None, largest: int = 127) -> Array:
    """Return ``weight`` rounded to integers up to ``largest`` and back, one scale per index of ``axis``, if any."""
    others = None if axis is None else tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)
    extreme = np.abs(weight).max(axis=others, keepdims=True) if weight.size else np.ones(1)
    scale = np.where(extreme > 0, extreme / largest, 1)
    rounded: Array = (np.clip(np.rint(weight / scale), -largest, largest) * scale).astype(weight.dtype)
    return rounded


def scale_and_zero(least: float, largest: float) -> tuple[float, int]:
    """Return scale and zero point of uint8 for values between ``least`` and ``largest``; zero itself is exact."""
    least, largest = min(least, 0.0), max(largest, 0.0)
    scale = (largest - least) / 255 or 1.0
    return scale, int(np.clip(np.rint(-least / scale), 0, 255))
