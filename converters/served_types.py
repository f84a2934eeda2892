"""ServedTypes: sequences, optional values and float8 in a graph's interface, as the plain tensors they are served as.

A sequence becomes one tensor with an axis more in front, so that all of its tensors have one shape; what is optional is
always there; float8 becomes float16, which holds all its values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from converters.graph_names import rename_made, rename_uses

if TYPE_CHECKING:
    import onnx

FLOAT8 = {17: "float8_e4m3fn", 18: "float8_e4m3fnuz", 19: "float8_e5m2", 20: "float8_e5m2fnuz"}
"""TensorProto.DataType's numbers to the names that ml_dtypes has for them."""
_FLOAT16 = 10


def make_plain(model: onnx.ModelProto) -> bool:
    """Give ``model`` plain tensors of served types under the names of others; return whether there were some.

    Lists of maps and what is held in several lists are left as they are.
    """
    from onnx import helper

    graph = model.graph
    stored = {tensor.name for tensor in graph.initializer}
    made = {name for node in graph.node for name in node.output}
    changed = False
    for value in graph.input:
        kind = _Kind(value)
        if value.name in stored or not kind.is_other:
            continue
        # What goes in is made by the first nodes, which come in this order.
        steps = [
            *([helper.make_node("SplitToSequence", [], [], axis=0, keepdims=0)] if kind.sequence else []),
            *([helper.make_node("Optional", [], [])] if kind.optional else []),
            *([helper.make_node("Cast", [], [], to=kind.element)] if kind.element in FLOAT8 else []),
        ]
        names = [value.name, *(f"{value.name}__in_file_{len(steps) - at}" for at in range(1, len(steps) + 1))]
        rename_uses(graph, value.name, names[-1])
        for at, node in enumerate(steps):
            node.input.append(names[at])
            node.output.append(names[at + 1])
            graph.node.insert(at, node)
        kind.make_plain(f"{value.name}_count")
        changed = True
    for value in graph.output:
        kind = _Kind(value)
        if value.name not in made or not kind.is_other:
            continue
        steps = [
            *([helper.make_node("OptionalGetElement", [], [])] if kind.optional else []),
            *([helper.make_node("ConcatFromSequence", [], [], axis=0, new_axis=1)] if kind.sequence else []),
            *([helper.make_node("Cast", [], [], to=_FLOAT16)] if kind.element in FLOAT8 else []),
        ]
        names = [*(f"{value.name}__in_file_{len(steps) - at}" for at in range(len(steps))), value.name]
        rename_made(graph, value.name, names[0])
        for at, node in enumerate(steps):
            node.input.append(names[at])
            node.output.append(names[at + 1])
            graph.node.append(node)
        kind.make_plain(f"{value.name}_count")
        changed = True
    return changed


class _Kind:
    """What holds the tensor that an input or output is."""

    def __init__(self, value: onnx.ValueInfoProto) -> None:
        self._value = value
        kind: Any = value.type
        self.optional = kind.HasField("optional_type")
        kind = kind.optional_type.elem_type if self.optional else kind
        self.sequence = kind.HasField("sequence_type")
        kind = kind.sequence_type.elem_type if self.sequence else kind
        self._tensor = kind.tensor_type if kind.HasField("tensor_type") else None
        self.element = self._tensor.elem_type if self._tensor is not None else 0

    @property
    def is_other(self) -> bool:
        """Whether it is served as something else than it is."""
        return self._tensor is not None and (self.optional or self.sequence or self.element in FLOAT8)

    def make_plain(self, count: str) -> None:
        """Declare the tensor alone; the axis of a sequence's number of tensors is called ``count``."""
        import onnx

        assert self._tensor is not None
        plain = onnx.TypeProto()
        plain.tensor_type.elem_type = _FLOAT16 if self.element in FLOAT8 else self.element
        if self._tensor.HasField("shape"):
            plain.tensor_type.shape.SetInParent()
            if self.sequence:
                plain.tensor_type.shape.dim.add(dim_param=count)
            plain.tensor_type.shape.dim.extend(self._tensor.shape.dim)
        self._value.type.CopyFrom(plain)
