"""Guesses for TensorFlow's formats: the file tells dtypes and ranks; which open axes are real, only running tells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from converters.axes import Guess
from converters.sampling import TRACE_BATCH, axes_of
from schemas.descriptor import TensorSpec

if TYPE_CHECKING:
    from converters.tensorflow_runner import TensorflowRunner

_LENGTHS = (16, 8, 32, 64, 128, 1)
_MATRICES = frozenset({"MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3", "Einsum"})
_LOOPS = frozenset({"While", "StatelessWhile", "If", "StatelessIf"})
_IMAGE_SIZES = (64, 32, 128, 224, 256, 512)


def tensorflow_guesses(specs: Sequence[TensorSpec]) -> Iterator[Guess]:
    """Yield the declared inputs at usual sizes, at a batch of two and then of one; then open axes at other sizes."""
    inputs = tuple(specs)
    leading = {spec.shape[0] for spec in inputs if spec.shape and isinstance(spec.shape[0], str)}
    # Images have their channels last here.
    images = {dim for spec in inputs if len(spec.shape) == 4 for dim in spec.shape[1:3] if isinstance(dim, str)}
    others = [axis for axis in axes_of(inputs) if axis not in leading]
    for length, image in zip(_LENGTHS, _IMAGE_SIZES, strict=True):
        for batch in (TRACE_BATCH, 1) if leading else (TRACE_BATCH,):
            sizes = {str(axis): batch for axis in leading}
            sizes.update({axis: image if axis in images else length for axis in others})
            yield Guess(inputs, sizes)
        if not others:
            return


def model_facts(runner: TensorflowRunner, inputs: Sequence[TensorSpec], sizes: Mapping[str, int]) -> dict[str, Any]:
    """Return parameters, the part of them in matrix products, and FLOPs of one row, from the frozen graph.

    ``inputs`` are the runner's as running found them: an axis that only took one size is that number there.
    FLOPs are TensorFlow's own count, two for each multiply-add; they are left out where a loop or an operator without
    a count holds the work. {} where the graph cannot be frozen at fixed sizes.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    from converters import tensorflow_source

    model = runner.model
    counts: dict[str, int] = {}
    for variable in model.function.variables:
        name = str(variable.dtype.name)
        counts[name] = counts.get(name, 0) + max(variable.shape.num_elements() or 0, 0)
    facts: dict[str, Any] = {
        "parameter_count": sum(counts.values()),
        "parameter_bytes": sum(number * tf.dtypes.as_dtype(name).size for name, number in counts.items()),
        "parameter_dtypes": counts,
    }
    fixed = {
        argument: tf.TensorSpec([dim if isinstance(dim, int) else sizes[dim] for dim in spec.shape], spec.dtype)
        for argument, spec in zip(model.arguments, inputs, strict=True)
    }
    try:
        traced = tf.function(lambda **given: model.function(**given), autograph=False).get_concrete_function(**fixed)
        graph = convert_variables_to_constants_v2(traced).graph
        facts["matrix_bytes"] = _matrix_bytes(graph)
        options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
        options["output"] = "none"
        if not any(node.type in _LOOPS for node in graph.get_operations()):
            facts["flops"] = int(tf.compat.v1.profiler.profile(graph, options=options).total_float_ops)
    except tensorflow_source.errors():
        return facts
    return facts


def _matrix_bytes(graph: Any) -> int:
    """Return the bytes of the constants that matrix products multiply by, each once."""
    found: dict[str, int] = {}
    for node in graph.get_operations():
        if node.type not in _MATRICES:
            continue
        for tensor in node.inputs:
            origin = tensor.op
            while origin.type in ("Identity", "ReadVariableOp", "Cast", "Reshape") and origin.inputs:
                origin = origin.inputs[0].op
            if origin.type == "Const":
                value = origin.outputs[0]
                found[origin.name] = (value.shape.num_elements() or 0) * value.dtype.size
    return sum(found.values())
