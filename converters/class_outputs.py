"""Which outputs of a model hold scores of classes, so that their top class is compared as well."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.descriptor import ModelDescriptor, TensorSpec
from schemas.step_io import StepContext


def class_outputs(context: StepContext, descriptor: ModelDescriptor, outputs: Sequence[TensorSpec]) -> frozenset[str]:
    """Return the outputs whose last axis holds scores of classes: as many as there are labels, or by the task."""
    labels = (context.request.sidecar.labels if context.request.sidecar else ()) or descriptor.labels
    named = "classification" in (descriptor.task or "")
    return frozenset(
        spec.name
        for spec in outputs
        if "float" in spec.dtype
        and len(spec.shape) >= 2
        and isinstance(spec.shape[-1], int)
        and spec.shape[-1] >= 2
        and (spec.shape[-1] == len(labels) or (named and len(spec.shape) == 2))
    )
