"""A graph's interface: the names, order and axes of inputs and outputs, made what the descriptor says they are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from schemas.descriptor import Dim, TensorSpec
from schemas.errors import ConversionFailed

if TYPE_CHECKING:
    import onnx

_ELEMENT_TYPES = {
    "float32": 1, "uint8": 2, "int8": 3, "uint16": 4, "int16": 5, "int32": 6, "int64": 7, "string": 8,
    "bool": 9, "float16": 10, "float64": 11, "uint32": 12, "uint64": 13, "bfloat16": 16,
}  # fmt: skip
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def restore_inputs(model: onnx.ModelProto, specs: Sequence[TensorSpec]) -> tuple[str, ...]:
    """Give ``model`` exactly the inputs of ``specs``, in their order; return notes.

    An input that the exporter dropped because nothing uses it comes back unused, so that clients need not know.
    Raises ConversionFailed when the graph has an input of another name.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    found = {value.name: value for value in model.graph.input if value.name not in weights}
    extra = sorted(set(found) - {spec.name for spec in specs})
    if extra:
        raise ConversionFailed(f"The exporter made an input {extra[0]!r} that the original does not have.")
    dropped = [spec.name for spec in specs if spec.name not in found]
    values = [found.get(spec.name) or value_info(spec) for spec in specs]
    del model.graph.input[:]
    model.graph.input.extend(values)
    # Before version 4 weights had to be inputs as well, and here they no longer are.
    model.ir_version = max(model.ir_version, 4)
    return tuple(f"Nothing in the model uses input {name!r}; it is accepted and ignored." for name in dropped)


def value_info(spec: TensorSpec) -> onnx.ValueInfoProto:
    """Return ``spec`` as a graph's input or output."""
    import onnx

    return onnx.helper.make_tensor_value_info(spec.name, _ELEMENT_TYPES[spec.dtype], list(spec.shape))


def restore_outputs(model: onnx.ModelProto, names: Sequence[str]) -> None:
    """Put the outputs in the order of ``names`` and take away others. Raises ConversionFailed when one is missing."""
    found = {value.name: value for value in model.graph.output}
    missing = [name for name in names if name not in found]
    if missing:
        raise ConversionFailed(
            f"The exporter left out the output {missing[0]!r}; it made {', '.join(found) or 'none'}."
        )
    values = [found[name] for name in names]
    del model.graph.output[:]
    model.graph.output.extend(values)


def place_outputs(model: onnx.ModelProto, names: Sequence[str]) -> None:
    """Make the outputs ``names``, in that order; by position where the exporter named as many otherwise.

    Exporters call an output that is a weight, an input or another output after it, so those get an Identity of their
    own. Raises ConversionFailed when outputs are missing.
    """
    import onnx

    outputs = list(model.graph.output)
    if len(outputs) != len(names):
        restore_outputs(model, names)
        return
    fixed = {tensor.name for tensor in model.graph.initializer} | {value.name for value in model.graph.input}
    taken: set[str] = set()
    for number, value in enumerate(outputs):
        if value.name in fixed or value.name in taken:
            copied = f"{value.name}_output_{number}"
            model.graph.node.append(onnx.helper.make_node("Identity", [value.name], [copied]))
            value.name = copied
        taken.add(value.name)
    if {value.name for value in outputs} == set(names):
        restore_outputs(model, names)
    else:
        rename_outputs(model, names)


def rename_outputs(model: onnx.ModelProto, names: Sequence[str]) -> None:
    """Call the outputs ``names``, by position; inner tensors that already have such a name make way."""
    old = [value.name for value in model.graph.output]
    if list(names) == old:
        return
    taken = {name for node in model.graph.node for name in (*node.input, *node.output)} - set(old)
    mapping = {name: f"{name}_inner" for name in set(names) & taken}
    mapping.update(zip(old, names, strict=True))
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = mapping.get(name, name)
        for i, name in enumerate(node.output):
            node.output[i] = mapping.get(name, name)
    for value in (*model.graph.output, *model.graph.value_info):
        value.name = mapping.get(value.name, value.name)
    for tensor in model.graph.initializer:
        tensor.name = mapping.get(tensor.name, tensor.name)


def name_axes(model: onnx.ModelProto, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    """Call the dynamic axes of ``model`` what ``inputs`` and ``outputs`` call them.

    Exporters invent names (s77, batch_dim_0); the one of an input's axis is replaced everywhere in the graph, also
    inside expressions. An output's axis takes the spec's name where the graph has no size for it.

    Raises ConversionFailed when the exporter fixed an axis that the descriptor says is dynamic.
    """
    by_name = {value.name: value for value in model.graph.input}
    mapping: dict[str, str] = {}
    for spec in inputs:
        dims = by_name[spec.name].type.tensor_type.shape.dim
        if len(dims) != len(spec.shape):
            raise ConversionFailed(
                f"The exporter gave input {spec.name!r} {len(dims)} axes, the original has {len(spec.shape)}."
            )
        for dim, wanted in zip(dims, spec.shape, strict=True):
            if isinstance(wanted, str) and dim.HasField("dim_value"):
                raise ConversionFailed(
                    f"The exporter fixed axis {wanted!r} of input {spec.name!r} at {dim.dim_value}.",
                    hint="The other exporter may keep it dynamic.",
                )
            if isinstance(wanted, str) and dim.dim_param:
                mapping.setdefault(dim.dim_param, wanted)
            _set(dim, wanted)
    for value in (*model.graph.value_info, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = _NAME.sub(lambda match: mapping.get(match[0], match[0]), dim.dim_param)
    named = {value.name: value for value in model.graph.output}
    for spec in outputs:
        dims = named[spec.name].type.tensor_type.shape.dim if spec.name in named else ()
        if len(dims) == len(spec.shape):
            for dim, wanted in zip(dims, spec.shape, strict=True):
                if not dim.HasField("dim_value"):
                    _set(dim, wanted)


def tell_shapes(values: Iterable[onnx.ValueInfoProto], specs: Sequence[TensorSpec]) -> bool:
    """Give the inputs or outputs that declare no shape the one that ``specs`` have; return whether there were some."""
    known = {spec.name: spec for spec in specs}
    told = False
    for value in values:
        kind = value.type.tensor_type
        if value.name in known and value.type.HasField("tensor_type") and not kind.HasField("shape"):
            kind.shape.CopyFrom(value_info(known[value.name]).type.tensor_type.shape)
            told = True
    return told


def make_dense(model: onnx.ModelProto) -> bool:
    """Turn sparse weights into plain ones, which every reader and writer knows; return whether there were some."""
    import numpy as np
    from onnx import numpy_helper

    for sparse in model.graph.sparse_initializer:
        values, places = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
        dense = np.zeros(tuple(sparse.dims), values.dtype)
        if places.ndim == 1:
            dense.reshape(-1)[places] = values
        else:
            dense[tuple(places.T)] = values
        model.graph.initializer.append(numpy_helper.from_array(dense, sparse.values.name))
    found = len(model.graph.sparse_initializer) > 0
    del model.graph.sparse_initializer[:]
    return found


def _set(dim: onnx.TensorShapeProto.Dimension, wanted: Dim) -> None:
    if isinstance(wanted, str):
        dim.dim_param = wanted
    else:
        dim.dim_value = wanted
