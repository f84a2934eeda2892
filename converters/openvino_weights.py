"""OpenVINO IR to IR with compressed weights; activations stay as they are, so nothing is calibrated."""

from __future__ import annotations

from collections.abc import Sequence

from converters import openvino_file
from converters.model_errors import RAISED_BY_MODELS, first_line
from converters.silence import quiet
from converters.trace_inputs import reference_cases
from schemas.errors import ConversionFailed
from schemas.step_io import StepContext, StepOutcome
from schemas.step_options import OpenvinoWeights4Options, OpenvinoWeightsOptions

_MATRICES = ("MatMul", "Gather", "Convolution")


def convert(context: StepContext) -> StepOutcome:
    """Compress the weights of input ``model``, an IR: to int8 with a scale per channel, or to int4 in groups.

    Raises ConversionFailed when it has no weights to compress.
    """
    import nncf

    options: OpenvinoWeightsOptions | OpenvinoWeights4Options = context.options
    model = openvino_file.read(openvino_file.find(context.input("model"), None))
    counts = openvino_file.operators(model)
    if not any(counts.get(kind) for kind in _MATRICES):
        raise ConversionFailed(
            "The model has no matrices whose weights could be compressed.",
            hint="Compressed weights are for models that multiply by large matrices.",
        )
    before = _stored_bytes(model)
    context.progress(0.2, "Compressing weights")
    kinds = nncf.CompressWeightsMode
    try:
        with quiet():
            if isinstance(options, OpenvinoWeights4Options):
                mode = kinds.INT4_SYM if options.symmetric else kinds.INT4_ASYM
                model = nncf.compress_weights(model, mode=mode, group_size=options.group_size, ratio=options.ratio)
            else:
                model = nncf.compress_weights(model, mode=kinds.INT8_SYM if options.symmetric else kinds.INT8_ASYM)
    except (*RAISED_BY_MODELS, *_nncf_errors()) as error:
        raise ConversionFailed(f"The weights could not be compressed: {first_line(error)}.") from error
    after = _stored_bytes(model)
    if after >= before:
        raise ConversionFailed("Compressing saved nothing: the model has no large matrices in float.")
    notes = [f"Weights take {after >> 10} KiB instead of {before >> 10} KiB."]
    return openvino_file.finish(context, model, [case.feeds for case in reference_cases(context)], notes)


def _stored_bytes(model: object) -> int:
    constants = (op for op in openvino_file.all_operators(model) if op.get_type_name() == "Constant")
    return sum(int(op.get_byte_size()) for op in constants)


def _nncf_errors() -> Sequence[type[Exception]]:
    import nncf

    return (nncf.errors.ValidationError, nncf.errors.InvalidGroupSizeError)
