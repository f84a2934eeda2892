"""OpenVINO IR to IR in int8: weights and activations, calibrated on the reference's inputs with NNCF."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from converters import openvino_file
from converters.model_errors import RAISED_BY_MODELS, first_line
from converters.openvino_calibration import Calibration, calibration
from converters.openvino_mixed import Search
from converters.silence import quiet
from converters.trace_inputs import reference_cases
from schemas.errors import ConversionFailed
from schemas.step_io import StepContext, StepOutcome
from schemas.step_options import OpenvinoInt8Options

if TYPE_CHECKING:
    import openvino

QUANTIZED = ("Convolution", "GroupConvolution", "MatMul", "ConvolutionBackpropData", "GroupConvolutionBackpropData")
"""Operators that gain speed by int8, and that stay in float when they cost too much accuracy."""


def convert(context: StepContext) -> StepOutcome:
    """Quantise input ``model``, an IR. Names, order and axes of its tensors stay.

    Where the result misses the target's tolerance on the reference, the operators that cost the most are found by
    measurement and left in float, as few as it takes; the notes name them.

    Raises ConversionFailed when nothing can be quantised or there is nothing to calibrate on.
    """
    options: OpenvinoInt8Options = context.options
    source = openvino_file.find(context.input("model"), None)
    context.progress(0.02, "Reading the OpenVINO model")
    model = openvino_file.read(source)
    counts = openvino_file.operators(model)
    if not any(counts.get(kind) for kind in QUANTIZED):
        raise ConversionFailed(
            "The model has no convolution or matrix multiplication to quantise.",
            hint="int8 is for models whose time goes into those.",
        )
    names = {op.get_friendly_name() for op in openvino_file.all_operators(model)}
    unknown = [name for name in options.ignored if name not in names]
    if unknown:
        raise ConversionFailed(f"The model has no operator {unknown[0]!r} to leave in float.")
    found = calibration(context, options.subset_size)
    transformer = options.model_type == "transformer" or (options.model_type == "auto" and is_transformer(model))
    context.progress(0.1, f"Calibrating on {len(found.feeds)} inputs")

    def quantised(*, widest: bool) -> openvino.Model:
        return quantize(model, options, found, transformer, widest=widest)

    result = quantised(widest=options.ranges == "widest")
    done = quantised_names(result)
    if not done:
        raise ConversionFailed("The quantiser left every operator of the model in float.")
    notes = [
        f"{len(done)} operators compute in int8{', outliers smoothed into the weights' * transformer}.",
        found.note(),
    ]
    search = Search(context, model)
    trial = search.judged(result)
    if trial.missed and options.ranges == "auto" and options.search_trials > 1 and not transformer:
        context.progress(0.2, "calibrating with the widest ranges")
        other = search.judged(quantised(widest=True))
        if not other.missed or other.error < trial.error:
            notes.append(f"Activations are bounded by their extremes; with the mean of the inputs': {trial.missed}")
            trial = other
    trial, told = search.run(trial, done)
    notes += told
    cases = [case.feeds for case in reference_cases(context)]
    return openvino_file.finish(context, trial.model, cases, notes)


def quantize(
    model: openvino.Model,
    options: OpenvinoInt8Options,
    found: Calibration,
    transformer: bool,
    *,
    widest: bool,
) -> openvino.Model:
    """Return ``model`` quantised; it stays as it is. Raises ConversionFailed with the quantiser's reason.

    ``widest``: no value of an activation that was seen is cut off. Else the quantiser's own choice, the mean of the
    inputs' extremes.
    """
    import nncf
    from nncf.quantization.advanced_parameters import (
        AdvancedQuantizationParameters,
        AdvancedSmoothQuantParameters,
        OverflowFix,
    )
    from nncf.quantization.range_estimator import RangeEstimatorParameters, RangeEstimatorParametersSet

    # Symmetric ranges are a little faster, and ruin the activations of GELU and softmax, which lie on one side of zero.
    mixed = transformer or options.preset == "mixed"
    ignored = list(dict.fromkeys(options.ignored))
    try:
        with quiet():
            quantised: openvino.Model = nncf.quantize(
                model.clone(),
                nncf.Dataset(list(found.feeds)),
                model_type=nncf.ModelType.TRANSFORMER if transformer else None,
                preset=nncf.QuantizationPreset.MIXED if mixed else nncf.QuantizationPreset.PERFORMANCE,
                subset_size=len(found.feeds),
                fast_bias_correction=options.fast_bias_correction,
                ignored_scope=nncf.IgnoredScope(names=ignored) if ignored else None,
                advanced_parameters=AdvancedQuantizationParameters(
                    overflow_fix=OverflowFix.ENABLE if options.reduce_range else None,
                    activations_range_estimator_params=(
                        RangeEstimatorParametersSet.MINMAX if widest else RangeEstimatorParameters()
                    ),
                    smooth_quant_alphas=AdvancedSmoothQuantParameters(matmul=options.smooth_quant_alpha),
                ),
            )
    except (*RAISED_BY_MODELS, nncf.errors.ValidationError) as error:
        raise ConversionFailed(f"The quantiser failed: {first_line(error)}.") from error
    return quantised


def is_transformer(model: openvino.Model) -> bool:
    """Whether it has attention (activations multiplied by activations after a softmax), or normalises before products.

    Their activations have outliers in a few channels, which are moved into the weights before anything is rounded.
    """
    counts = openvino_file.operators(model)
    if counts.get("ScaledDotProductAttention"):
        return True
    if counts.get("MVN") and counts.get("MatMul", 0) > counts.get("Convolution", 0):
        return True
    if not counts.get("Softmax"):
        return False
    return any(
        op.get_type_name() == "MatMul"
        and all(port.get_source_output().get_node().get_type_name() != "Constant" for port in op.inputs())
        for op in openvino_file.all_operators(model)
    )


def quantised_names(model: openvino.Model) -> tuple[str, ...]:
    """Return the names of the operators that take quantised activations or weights, in order of execution."""
    return tuple(
        op.get_friendly_name()
        for op in openvino_file.all_operators(model)
        if op.get_type_name() in QUANTIZED and any(_is_quantised(port) for port in op.inputs())
    )


def _is_quantised(port: Any) -> bool:
    """Whether what comes in was rounded to int8: an activation, or a weight that is stored so."""
    node = port.get_source_output().get_node()
    if node.get_type_name() == "FakeQuantize":
        return True
    for _ in range(4):
        if node.get_type_name() not in ("Multiply", "Subtract", "Convert", "Reshape", "Transpose"):
            break
        node = node.input(0).get_source_output().get_node()
    stored = node.get_element_type().get_type_name() if node.get_type_name() == "Constant" else ""
    return stored in ("i8", "u8")
