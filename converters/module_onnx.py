"""Weights with a sidecar that names their class, to ONNX."""

from __future__ import annotations

from converters import torch_export, torch_source
from schemas.step_io import StepContext, StepOutcome


def convert(context: StepContext) -> StepOutcome:
    """Build the sidecar's class, load input ``model``'s weights, export to ONNX.

    Runs the person's code: only ever in the sandbox. Raises NeedsInput, ModelFailed or ConversionFailed.
    """
    context.progress(0.05, "Building the sidecar's class and loading the weights")
    return torch_export.export(context, torch_source.load(context))
