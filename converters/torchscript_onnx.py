"""TorchScript to ONNX."""

from __future__ import annotations

from converters import torch_export, torch_source
from schemas.errors import ConversionFailed
from schemas.step_io import StepContext, StepOutcome


def convert(context: StepContext) -> StepOutcome:
    """Export input ``model``, a TorchScript file, to ONNX. Raises ConversionFailed; only ever in the sandbox."""
    if context.options.exporter == "dynamo":
        raise ConversionFailed(
            "The dynamo exporter does not read TorchScript.", hint="Use the torchscript exporter for it."
        )
    context.progress(0.05, "Loading the TorchScript module")
    return torch_export.export(context, torch_source.load(context))
