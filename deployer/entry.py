"""From evidence to what is served: the one place that decides about batching."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from deployer.backends import backend_of, unservable
from schemas.deployment import EntrySpec
from schemas.descriptor import BATCH_AXIS, Format, ModelDescriptor, TensorSpec
from schemas.errors import Unsupported
from schemas.evidence import ParityReport
from schemas.precision import Precision
from schemas.target import TargetProfile

_LABELLED = ("float64", "float32", "float16", "bfloat16")


def entry_spec(
    name: str,
    version: int,
    parity: ParityReport,
    descriptor: ModelDescriptor,
    target: TargetProfile,
    *,
    format: Format = Format.ONNX,
    parameters: Mapping[str, str] | None = None,
) -> EntrySpec:
    """Return what is published for the candidate that ``parity`` is about; its own tensors, not the original's.

    ``max_batch_size`` is the largest batch for which rows together gave what they gave one by one, however large the
    target's batches are: batching is proven, never assumed. A backend that would turn it into the one batch size
    that runs gets none, and clients send the batch axis themselves. ``parameters`` go to the backend over those that
    the evidence asks for. Raises Unsupported for a format or for tensors that Triton cannot serve.
    """
    inputs, outputs = parity.inputs, parity.served_outputs
    most = max_batch_size(parity, inputs, outputs) if backend_of(format).batches_any_size else 0
    reason = unservable(format, (*inputs, *outputs), batched=most > 0, hardware=target.hardware)
    if reason is not None:
        raise Unsupported(reason[0], hint=reason[1])
    labels_output = _labels_output(descriptor.labels, outputs, batched=most > 0)
    sizes = {axis: size for case in parity.cases for axis, size in case.axes.items() if case.source != "random"}
    sizes = {**{axis: size for case in parity.cases for axis, size in case.axes.items()}, **sizes}
    return EntrySpec(
        name=name,
        version=version,
        format=format,
        inputs=inputs,
        outputs=outputs,
        batching=parity.batching,
        max_batch_size=most,
        labels=descriptor.labels if labels_output else (),
        labels_output=labels_output,
        hardware=target.hardware,
        parameters={**measured_parameters(format, parity.precision), **(parameters or {})},
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


def measured_parameters(format: Format, precision: Precision) -> dict[str, str]:
    """Return the backend's parameters that make it run a model as it was measured."""
    match format:
        case Format.OPENVINO:
            hint = {"HINT_BF16": "YES"} if precision is Precision.BF16 else {}
            return {"NUM_STREAMS": "1", "PERFORMANCE_HINT": "LATENCY", **hint}
        case Format.TORCHSCRIPT:
            return {"INFERENCE_MODE": "true"}
        case _:
            return {}


def _labels_output(labels: Sequence[str], outputs: Sequence[TensorSpec], *, batched: bool) -> str | None:
    """Return the first floating output whose last axis has as many places as there are labels."""
    least_rank = 2 if batched else 1
    for tensor in outputs:
        if tensor.dtype in _LABELLED and len(tensor.shape) >= least_rank and tensor.shape[-1] == len(labels):
            return tensor.name
    return None
