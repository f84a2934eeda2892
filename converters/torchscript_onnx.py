"""TorchScript to ONNX."""

from __future__ import annotations

import dataclasses

from converters import torch_export, torch_source
from converters.silence import quiet
from converters.torch_replay import replayed
from converters.trace_inputs import trace_cases
from schemas.errors import ConversionFailed
from schemas.step_io import StepContext, StepOutcome

_DYNAMO_OPSET = 18
"""The oldest that the dynamo exporter writes."""


def convert(context: StepContext) -> StepOutcome:
    """Export input ``model``, a TorchScript file, to ONNX. Raises ConversionFailed; only ever in the sandbox.

    What the TorchScript exporter cannot write is replayed for the dynamo exporter in the same step.
    """
    if context.options.exporter == "dynamo":
        raise ConversionFailed(
            "The dynamo exporter does not read TorchScript.", hint="Use the torchscript exporter for it."
        )
    context.progress(0.05, "Loading the TorchScript module")
    source = torch_source.load(context)
    try:
        return torch_export.export(context, source)
    except ConversionFailed as failure:
        first = failure
    context.progress(0.1, "Replaying the trace for the dynamo exporter")
    with quiet():
        again = replayed(source, torch_export.feeds_of(source, trace_cases(context)[0]))
    if again is None:
        raise ConversionFailed(
            str(first.args[0]),
            hint="Scripted control flow keeps this model from the exporter that knows more operators. Save it with "
            "torch.jit.trace or torch.export.save instead, or replace the operator.",
            **first.facts,
        ) from first
    options = context.options.model_copy(
        update={"exporter": "dynamo", "opset": max(context.options.opset, _DYNAMO_OPSET)}
    )
    note = f"Exported from a replay of the trace, because without it: {first.args[0]}"
    try:
        return torch_export.export(dataclasses.replace(context, options=options), again, notes=(note,))
    except ConversionFailed:
        raise first from None
