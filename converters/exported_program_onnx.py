"""ExportedProgram to ONNX."""

from __future__ import annotations

from typing import Any

from converters import torch_export, torch_source
from converters.torch_source import TorchSource
from schemas.step_io import StepContext, StepOutcome


def convert(context: StepContext) -> StepOutcome:
    """Export input ``model``, a .pt2 file, to ONNX. Raises ConversionFailed; only ever in the sandbox."""
    context.progress(0.05, "Loading the ExportedProgram")
    source = torch_source.load(context)
    program = source.inner if _in_order(context, source) else None
    return torch_export.export(context, source, program=program)


def _in_order(context: StepContext, source: TorchSource) -> bool:
    """Whether the program's own inputs and outputs are the source's, one by one, so that it can be taken as it is.

    Otherwise the module around it is exported again, which takes a second or two more.
    """
    descriptor = context.request.descriptor
    program: Any = source.inner
    arguments = [slot for slot in program.graph_signature.user_inputs if isinstance(slot, str)]
    if set(source.input_names) == set(arguments) and list(source.input_names) != arguments:
        return False
    if descriptor is None or not descriptor.outputs:
        return False
    results = [slot for slot in program.graph_signature.user_outputs if isinstance(slot, str)]
    # Names say nothing about positions: where there are several outputs the module around it knows which is which.
    return len(results) == len(set(results)) == len(program.graph_signature.user_outputs) == 1
