"""A Hugging Face folder to ONNX, sentence-transformers folders included."""

from __future__ import annotations

from converters import torch_export
from converters.huggingface_source import load_huggingface
from converters.onnx_file import MODEL_FILE, OUTPUT_FOLDER
from converters.quantization_search import Judge
from converters.silence import quiet
from schemas.errors import ConversionFailed, ModelFailed
from schemas.precision import Precision
from schemas.step_io import StepContext, StepOutcome
from schemas.step_options import HuggingfaceExportOptions

_PLAINER = {"fused": ("fused", "sdpa", "eager"), "sdpa": ("sdpa", "eager"), "eager": ("eager",)}
"""What is asked for first, then what is tried when it fails."""


def convert(context: StepContext) -> StepOutcome:
    """Export input ``model``, a folder, to ONNX. Raises ConversionFailed; only ever in the sandbox.

    When that fails with ``options.attention``, the plainer kinds of attention are tried in the same step.
    """
    options: HuggingfaceExportOptions = context.options
    descriptor = context.request.descriptor
    if descriptor is None:
        raise ValueError("huggingface_onnx needs request.descriptor")
    folder = context.input("model")
    kinds = _PLAINER[options.attention]
    notes: list[str] = []
    for number, attention in enumerate(kinds):
        context.progress(0.05, f"Loading the model with {attention} attention")
        try:
            with quiet():
                source = load_huggingface(context, folder, descriptor, attention)
            outcome = torch_export.export(context, source, notes=notes)
            if attention == "fused":
                _check(context)
            return outcome
        except (ConversionFailed, ModelFailed) as failure:
            # A model that does not load with plain attention either is at fault itself.
            if number == len(kinds) - 1 or (isinstance(failure, ModelFailed) and attention != "fused"):
                raise
            notes.append(f"Exported with {kinds[number + 1]} attention, because with {attention}: {failure.args[0]}")
    raise AssertionError("one of the kinds was tried last")


def _check(context: StepContext) -> None:
    """Raise ConversionFailed when the export's answers are not the original's on what is known of them.

    One operator stands for masks that models write in many ways (windows, rows that see nothing), so that a plainer
    export is had at once where it stands for them wrongly; ``parity`` judges whatever comes out.
    """
    if not context.has("reference"):
        return
    score = Judge(context, Precision.FP32).file(context.out / OUTPUT_FOLDER / MODEL_FILE)
    if score.why:
        raise ConversionFailed(f"Its answers differ from the original's: {score.why}")
