"""ONNX to OpenVINO IR, and IR that asks to be run in bfloat16."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from converters import onnx_file, openvino_file
from converters.silence import quiet
from converters.trace_inputs import reference_cases
from schemas.descriptor import TensorSpec
from schemas.errors import ConversionFailed
from schemas.step_io import StepContext, StepOutcome
from schemas.step_options import OnnxOpenvinoOptions

if TYPE_CHECKING:
    import openvino


def convert(context: StepContext) -> StepOutcome:
    """Convert input ``model`` to IR. Names, order and dynamic axes of its tensors stay.

    Raises ConversionFailed when OpenVINO lacks an operator or its result cannot be served.
    """
    import openvino

    options: OnnxOpenvinoOptions = context.options
    source = onnx_file.find(context.input("model"), context.request.descriptor)
    context.progress(0.05, "Reading the ONNX model")
    inputs, outputs = onnx_file.specs(source)
    try:
        with quiet():
            model = openvino.convert_model(str(source))
    except openvino_file.errors() as error:
        raise ConversionFailed(
            f"OpenVINO cannot convert the model: {openvino_file.reason(error)}.",
            hint="It is served by onnxruntime instead.",
        ) from error
    context.progress(0.5, "Naming its tensors")
    notes = [f"OpenVINO {openvino.get_version().split('-')[0]} wrote it; {len(list(model.get_ops()))} operators."]
    model = restore(model, inputs, outputs)
    if options.compress_to_fp16:
        notes.append("Its weights are stored in float16 and computed with in float32 or bfloat16.")
    cases = [case.feeds for case in reference_cases(context)]
    return openvino_file.finish(context, model, cases, notes, compress_to_fp16=options.compress_to_fp16)


def hint_bf16(context: StepContext) -> StepOutcome:
    """Mark input ``model``, an IR, to be run in bfloat16: Triton's parameter HINT_BF16 has to say the same.

    The weights stay as they are. A CPU without bfloat16 arithmetic computes in float32 then.
    """
    model = openvino_file.read(openvino_file.find(context.input("model"), None))
    model.set_rt_info("bf16", list(openvino_file.HINT))
    notes = ["It is run in bfloat16 where the CPU can; Triton is told by the parameter HINT_BF16."]
    return openvino_file.finish(context, model, [case.feeds for case in reference_cases(context)], notes)


def restore(model: openvino.Model, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> openvino.Model:
    """Return ``model`` with exactly the tensors of ``inputs`` and ``outputs``, in their order, each with one name.

    Raises ConversionFailed when one of them is not there or has become something else.
    """
    import openvino
    from openvino import opset13

    found = {name: port for port in model.inputs for name in port.names}
    extra = [port for port in model.inputs if not port.names & {spec.name for spec in inputs}]
    if extra:
        raise ConversionFailed(
            f"OpenVINO made an input {openvino_file.name_of(extra[0])!r} that the original does not have."
        )
    parameters = []
    for spec in inputs:
        if spec.name in found:
            parameters.append(found[spec.name].node)
        else:
            # Nothing uses it; it is taken and ignored, so that clients need not know.
            shape = openvino.PartialShape([dim if isinstance(dim, int) else -1 for dim in spec.shape])
            parameters.append(opset13.parameter(shape, _element_type(spec.dtype), name=spec.name))
    ends: list[Any] = []
    for spec in outputs:
        port = next((port for port in model.outputs if spec.name in port.names), None)
        if port is None:
            raise ConversionFailed(
                f"OpenVINO left out the output {spec.name!r}; it made "
                f"{', '.join(openvino_file.name_of(port) for port in model.outputs) or 'none'}."
            )
        ends.append(port.node)
    _bypass_identities(model)
    seen: set[tuple[str, int]] = set()
    for at, spec in enumerate(outputs):
        end = ends[at].input(0).get_source_output()
        place = (end.get_node().get_friendly_name(), end.get_index())
        # A tensor has one set of names: an output that is also an input, or given twice, needs a tensor of its own.
        if place in seen or end.get_node().get_type_name() == "Parameter":
            end = opset13.reshape(end, opset13.shape_of(end), special_zero=False).output(0)
        seen.add(place)
        end.get_tensor().set_names({spec.name})
        ends[at] = opset13.result(end)
    for spec, parameter in zip(inputs, parameters, strict=True):
        parameter.output(0).get_tensor().set_names({spec.name})
    restored = openvino.Model(ends, parameters, model.get_friendly_name())
    _same_types(restored, inputs, outputs)
    return restored


def _bypass_identities(model: openvino.Model) -> None:
    """Connect what follows an Identity to what comes before it: that operator is younger than the target's OpenVINO."""
    for op in openvino_file.all_operators(model):
        if op.get_type_name() == "Identity":
            for port in op.output(0).get_target_inputs():
                port.replace_source_output(op.input(0).get_source_output())


def _same_types(model: openvino.Model, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    mine_in, mine_out = openvino_file.model_specs(model)
    for mine, theirs in zip((*mine_in, *mine_out), (*inputs, *outputs), strict=True):
        if mine.dtype != theirs.dtype or len(mine.shape) != len(theirs.shape):
            raise ConversionFailed(
                f"Tensor {theirs.name!r} is {theirs.dtype}{list(theirs.shape)} in the original and "
                f"{mine.dtype}{list(mine.shape)} in OpenVINO."
            )


def _element_type(dtype: str) -> openvino.Type:
    import openvino

    names = {"float64": "f64", "float32": "f32", "float16": "f16", "bfloat16": "bf16", "bool": "boolean"}
    return getattr(openvino.Type, names.get(dtype, dtype.replace("uint", "u").replace("int", "i")))
