"""A Hugging Face folder to ONNX, sentence-transformers folders included."""

from __future__ import annotations

from converters import torch_export
from converters.huggingface_source import load_huggingface
from converters.silence import quiet
from schemas.catalog import HuggingfaceExportOptions
from schemas.errors import ConversionFailed
from schemas.step_io import StepContext, StepOutcome


def convert(context: StepContext) -> StepOutcome:
    """Export input ``model``, a folder, to ONNX. Raises ConversionFailed; only ever in the sandbox.

    When the exporter fails on ``options.attention``'s fused attention, plain attention is tried in the same step.
    """
    options: HuggingfaceExportOptions = context.options
    descriptor = context.request.descriptor
    if descriptor is None:
        raise ValueError("huggingface_onnx needs request.descriptor")
    folder = context.input("model")
    context.progress(0.05, "Loading the model with transformers")
    with quiet():
        source = load_huggingface(context, folder, descriptor, options.attention)
    try:
        return torch_export.export(context, source)
    except ConversionFailed as failure:
        if options.attention == "eager":
            raise
        note = f"Exported with plain attention, because with {options.attention}: {failure.args[0]}"
    context.progress(0.1, "Loading the model with plain attention")
    with quiet():
        source = load_huggingface(context, folder, descriptor, "eager")
    return torch_export.export(context, source, notes=(note,))
