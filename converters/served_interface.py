"""ServedInterface: a graph's inputs and outputs in the shapes that Triton carries, where the original's are others.

Triton refuses tensors without axes beside models without a batch axis, and axes that are declared to have size 0,
though it carries tensors that hold nothing. A scalar becomes an axis of one, by a reshape inside the graph; an input
that can hold no value becomes part of the graph; where it is the only one, or an output holds none either, such axes
are declared dynamic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from converters.arrays import Array, Arrays
from converters.graph_names import rename_made, rename_uses
from schemas.descriptor import TensorSpec

if TYPE_CHECKING:
    import onnx

SCALAR_AS = (1,)
"""The shape that a scalar is served with."""


def make_servable(model: onnx.ModelProto) -> tuple[str, ...]:
    """Give ``model`` inputs and outputs that Triton carries, under the same names; return notes.

    It must be read with its local functions and subgraphs; opset 5 or later, where Reshape takes its shape as input.
    """
    import numpy as np
    from onnx import helper, numpy_helper

    notes: list[str] = []
    graph = model.graph
    stored = {tensor.name for tensor in graph.initializer}
    made = {name for node in graph.node for name in node.output}
    # onnxruntime would tell the size of an answer that is made of nothing alone, and the server refuses that size.
    answers_nothing = any(0 in (_dims(value) or ()) for value in graph.output)
    for value in list(graph.input):
        dims = _dims(value)
        if dims is None or value.name in stored:
            continue
        if 0 in dims and len(graph.input) > 1 and not answers_nothing:
            shape = [size if isinstance(size, int) else 1 for size in dims]
            empty = np.zeros(shape, helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
            graph.input.remove(value)
            graph.initializer.append(numpy_helper.from_array(empty, value.name))
            notes.append(f"Input {value.name!r} has an axis of size 0 and holds nothing; it is part of the graph now.")
        elif 0 in dims:
            _free_empty_axes(value)
            notes.append(f"Input {value.name!r} has an axis of size 0; it is declared dynamic.")
        elif not dims:
            inner = f"{value.name}__scalar"
            rename_uses(graph, value.name, inner)
            graph.node.insert(0, _reshape(model, value.name, inner, ()))
            value.type.tensor_type.shape.dim.add(dim_value=1)
            notes.append(f"Input {value.name!r} is a scalar; it is served as one number with the shape [1].")
    for value in graph.output:
        if 0 in (_dims(value) or ()):
            _free_empty_axes(value)
            notes.append(f"Output {value.name!r} has an axis of size 0; it is declared dynamic.")
        if _dims(value) == [] and value.name in made:
            inner = f"{value.name}__scalar"
            rename_made(graph, value.name, inner)
            graph.node.append(_reshape(model, inner, value.name, SCALAR_AS))
            value.type.tensor_type.shape.dim.add(dim_value=1)
            notes.append(f"Output {value.name!r} is a scalar; it is served as one number with the shape [1].")
    return tuple(notes)


def fed(array: Array, shape: Sequence[Any]) -> Array:
    """Return a scalar for an input of that shape, which may be served with an axis of one; others as they are."""
    return array.reshape(SCALAR_AS) if array.ndim == 0 and len(shape) == 1 else array


def as_original(given: Arrays, expected: Arrays) -> Arrays:
    """Return a candidate's outputs with the axis of one taken away that the original's scalars lack."""
    return {
        name: array.reshape(()) if array.shape == SCALAR_AS and name in expected and expected[name].ndim == 0 else array
        for name, array in given.items()
    }


def same_rank(own: TensorSpec, original: TensorSpec) -> bool:
    """Whether a candidate's tensor has the original's axes, or the one that a scalar is served with."""
    return len(own.shape) == len(original.shape) or (not original.shape and own.shape == SCALAR_AS)


def holds_nothing(spec: TensorSpec) -> bool:
    """Whether the tensor has an axis of size 0, so that a candidate may go without it."""
    return math.prod(dim for dim in spec.shape if isinstance(dim, int)) == 0


def _dims(value: onnx.ValueInfoProto) -> list[int | str] | None:
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not kind.HasField("shape"):
        return None
    return [dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in kind.shape.dim]


def _free_empty_axes(value: onnx.ValueInfoProto) -> None:
    for axis, dim in enumerate(value.type.tensor_type.shape.dim):
        if dim.HasField("dim_value") and dim.dim_value == 0:
            dim.dim_param = f"{value.name}_{axis}"


def _reshape(model: onnx.ModelProto, before: str, after: str, shape: Sequence[int]) -> onnx.NodeProto:
    import numpy as np
    from onnx import helper, numpy_helper

    sizes = f"{after}__shape" if after.endswith("__scalar") else f"{after}__served_shape"
    model.graph.initializer.append(numpy_helper.from_array(np.array(shape, np.int64), sizes))
    return helper.make_node("Reshape", [before, sizes], [after], name=f"{after}__served")
