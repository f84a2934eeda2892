"""From evidence to what is served: the one place that decides about batching."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.deployment import EntrySpec
from schemas.descriptor import BATCH_AXIS, ModelDescriptor, TensorSpec
from schemas.errors import Unsupported
from schemas.evidence import ParityReport
from schemas.target import TargetProfile

_LABELLED = ("float64", "float32", "float16", "bfloat16")


def entry_spec(
    name: str, version: int, parity: ParityReport, descriptor: ModelDescriptor, target: TargetProfile
) -> EntrySpec:
    """Return what is published for the candidate that ``parity`` is about; its own tensors, not the original's.

    ``max_batch_size`` is the largest batch for which rows together gave what they gave one by one, however large the
    target's batches are: batching is proven, never assumed. Raises Unsupported for tensors that Triton cannot serve.
    """
    inputs, outputs = parity.inputs, parity.served_outputs
    most = max_batch_size(parity, inputs, outputs)
    for tensor in (*inputs, *outputs):
        _servable(tensor, batched=most > 0)
    labels_output = _labels_output(descriptor.labels, outputs, batched=most > 0)
    sizes = {axis: size for case in parity.cases for axis, size in case.axes.items() if case.source != "random"}
    sizes = {**{axis: size for case in parity.cases for axis, size in case.axes.items()}, **sizes}
    return EntrySpec(
        name=name,
        version=version,
        inputs=inputs,
        outputs=outputs,
        batching=parity.batching,
        max_batch_size=most,
        labels=descriptor.labels if labels_output else (),
        labels_output=labels_output,
        example_axes={**sizes, **descriptor.example_axes},
    )


def max_batch_size(parity: ParityReport, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> int:
    """Return the largest proven batch, 0 where batching is not proven or some tensor has no leading batch axis."""
    if not parity.batching.holds or not parity.passed:
        return 0
    if not all(tensor.shape and tensor.shape[0] == BATCH_AXIS for tensor in (*inputs, *outputs)):
        return 0
    most = max(parity.batching.sizes, default=0)
    # Rows were compared one by one with rows together: a single size of 1 shows nothing.
    return most if most > 1 else 0


def _servable(tensor: TensorSpec, *, batched: bool) -> None:
    empty = [dim for dim in tensor.shape if isinstance(dim, int) and dim <= 0]
    if empty:
        raise Unsupported(
            f"Tensor {tensor.name!r} has an axis of size {empty[0]}; Triton serves axes of 1 and more.",
            hint="Export the model without that input or output, or with its real size.",
        )
    if not batched and not tensor.shape:
        raise Unsupported(
            f"Tensor {tensor.name!r} is a single number without any axis, and Triton serves no such tensor.",
            hint="Export the model with an axis of size 1 around it, or without it.",
        )


def _labels_output(labels: Sequence[str], outputs: Sequence[TensorSpec], *, batched: bool) -> str | None:
    """Return the first floating output whose last axis has as many places as there are labels."""
    least_rank = 2 if batched else 1
    for tensor in outputs:
        if tensor.dtype in _LABELLED and len(tensor.shape) >= least_rank and tensor.shape[-1] == len(labels):
            return tensor.name
    return None
