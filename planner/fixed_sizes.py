"""FixedSizes: what is tried when a model cannot be converted for inputs of any size."""

from __future__ import annotations

from collections.abc import Mapping

from schemas.descriptor import BATCH_AXIS, ModelDescriptor, TensorSpec

_TEXTS = ("sequence", "decoder_sequence")
"""Axes that count tokens, which the probe tries at a few only."""
_TEXT_LENGTH = 128
"""What most sentences and short paragraphs fit into; a sidecar's 'inputs' choose another one."""

FIXED = "It is served with fixed sizes"
"""How the note begins that says so."""


def fixed_sizes(descriptor: ModelDescriptor) -> tuple[tuple[ModelDescriptor, ...], ...]:
    """Return descriptors with axes fixed, in two rounds: every axis but the batch, then the batch at one row, too.

    Of each round only the first that the original runs at is worth a conversion. () when no axis is dynamic.
    """
    axes = {dim for spec in descriptor.inputs for dim in spec.shape if isinstance(dim, str)}
    known = {axis: descriptor.example_axes[axis] for axis in axes if axis in descriptor.example_axes}
    others = {axis: size for axis, size in known.items() if axis != BATCH_AXIS}
    if not known or set(known) != axes:
        return ()
    longer = {axis: max(size, _TEXT_LENGTH) if axis in _TEXTS else size for axis, size in others.items()}
    sizes = [longer, others] if longer != others else [others]
    rounds = [[_fixed(descriptor, each) for each in sizes]] if others else []
    if BATCH_AXIS in known:
        rounds.append([_fixed(descriptor, {**each, BATCH_AXIS: 1}) for each in sizes])
    return tuple(tuple(each) for each in rounds)


def _fixed(descriptor: ModelDescriptor, sizes: Mapping[str, int]) -> ModelDescriptor:
    def tensor(spec: TensorSpec) -> TensorSpec:
        shape = tuple(sizes.get(dim, dim) if isinstance(dim, str) else dim for dim in spec.shape)
        return spec.model_copy(update={"shape": shape})

    listed = ", ".join(f"{axis} at {size}" for axis, size in sorted(sizes.items()))
    note = (
        f"{FIXED} ({listed}), because no conversion of it holds at others. Inputs have "
        "to be brought to them, as texts are by padding; the sidecar's 'inputs' choose other sizes."
    )
    return descriptor.model_copy(
        update={
            "inputs": tuple(map(tensor, descriptor.inputs)),
            # An output axis with a name of its own follows from these; whoever runs it sees its size.
            "outputs": tuple(map(tensor, descriptor.outputs)),
            "example_axes": {axis: size for axis, size in descriptor.example_axes.items() if axis not in sizes},
            "notes": (*descriptor.notes[:99], note),
        }
    )
