"""ONNX to ONNX: raise the opset, infer shapes, fold constants and fuse operators, once and offline."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from converters import graph_interface, onnx_file, onnx_lowering
from converters.model_errors import RAISED_BY_MODELS, first_line
from converters.served_types import make_plain
from converters.trace_inputs import reference_cases
from converters.zip_maps import drop_zip_maps
from schemas.catalog import SERVED_OPSET
from schemas.errors import ConversionFailed
from schemas.step_io import StepContext, StepOutcome
from schemas.step_options import OnnxOptimizeOptions

if TYPE_CHECKING:
    import onnx

_NOT_WRITTEN = ("SimplifiedLayerNormFusion",)
"""What it makes, onnxruntime keeps under ONNX's own name without ONNX having it, so no checker takes the file. The
server fuses it when it loads the model."""


def convert(context: StepContext) -> StepOutcome:
    """Optimise input ``model`` for every CPU. Names, order and dynamic axes of its tensors stay.

    No level above 'extended' is used: those lay weights out for the CPU that runs the step, and the file would be
    wrong on another. An opset that cannot be raised is kept, with a note.

    Raises ConversionFailed when onnxruntime refuses the model.
    """
    options: OnnxOptimizeOptions = context.options
    source = onnx_file.find(context.input("model"), context.request.descriptor)
    context.progress(0.05, "Reading the ONNX model")
    apart = onnx_file.is_apart(source)
    model = onnx_file.load(source, weights=not apart)
    told = context.request.descriptor
    plain = not apart and (drop_zip_maps(model) | make_plain(model))
    plain |= told is not None and graph_interface.tell_shapes(model.graph.input, told.inputs)
    if any(not value.type.HasField("tensor_type") for value in model.graph.output):
        model = onnx_file.infer_types(model)
    inputs, outputs = onnx_file.model_specs(model)
    before = sum(onnx_file.operators(model).values())
    notes: list[str] = []
    scratch = context.out / "raised"
    try:
        wanted = min(max(onnx_file.opset(model), options.min_opset), SERVED_OPSET)
        changed = False
        if apart and onnx_file.opset(model) != wanted:
            apart = onnx_file.size_of_folder(source) > onnx_file.INLINE_BYTES
            if apart:
                notes.append(f"Opset {onnx_file.opset(model)} was kept: models above 2 GB are not rewritten.")
            else:
                model = onnx_file.load(source)
        if onnx_file.opset(model) != wanted and not apart:
            context.progress(0.15, f"Changing the opset to {wanted}")
            model, note, changed = change_opset(model, wanted, scratch)
            notes.append(note)
        dense = graph_interface.make_dense(model) or plain
        if _drop_weight_inputs(model) or changed or dense or (onnx_file.has_data_files(source) and not apart):
            # With data files, onnxruntime would write a graph that points at the original's.
            source = onnx_file.save(_with_weights(source) if apart else model, scratch)
        big = apart or onnx_file.size_bytes(model) > onnx_file.INLINE_BYTES
        del model
        context.progress(0.3, "Folding and fusing the graph")
        folder = context.out / onnx_file.OUTPUT_FOLDER
        file = optimize_file(source, folder, options.level, threads=context.request.threads, big=big)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    apart = onnx_file.is_apart(file)
    optimized = onnx_file.load(file, weights=not apart)
    onnx_file.drop_unused_opsets(optimized)
    graph_interface.restore_inputs(optimized, inputs)
    graph_interface.restore_outputs(optimized, [spec.name for spec in outputs])
    if told is not None:
        # Checkers ask for one.
        graph_interface.tell_shapes(optimized.graph.output, told.outputs)
    graph_interface.name_axes(optimized, inputs, outputs)
    if not apart:
        shutil.rmtree(folder)
    after = sum(onnx_file.operators(optimized).values())
    notes.append(f"{before} operators became {after}.")
    return onnx_file.finish(context, optimized, [case.feeds for case in reference_cases(context)], notes)


def _with_weights(source: Path) -> onnx.ModelProto:
    model = onnx_file.load(source)
    _drop_weight_inputs(model)
    return model


def change_opset(model: onnx.ModelProto, opset: int, scratch: Path) -> tuple[onnx.ModelProto, str, bool]:
    """Return the changed model, or ``model`` when it cannot be changed, a note either way, and whether it was."""
    import onnx

    was = onnx_file.opset(model)
    done = "raised" if was < opset else "lowered"
    try:
        changed = _converted(model, opset)
        _drop_weight_inputs(changed)
        extra = {value.name for value in changed.graph.input} - {value.name for value in model.graph.input}
        if extra:
            raise ConversionFailed(f"the converter made an input {min(extra)!r} of its own.")
        changed = onnx.shape_inference.infer_shapes(changed)
        onnx_file.session(onnx_file.save(changed, scratch))
    except _converter_errors() as error:
        if opset < was:
            raise _too_new(was, opset, error) from error
        return model, f"Opset {was} was kept, because it could not be {done} to {opset}: {first_line(error)}.", False
    return changed, f"The opset was {done} from {was} to {opset}.", True


def _converted(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Return ``model`` in another opset; downwards where ONNX's own converter has no way, by writing operators out."""
    import onnx

    if model.ir_version < 4 and opset > onnx_file.opset(model):
        # Until then every weight was an input too; onnxruntime asks for none of that, and the converter does.
        old, model = model, onnx.ModelProto()
        model.CopyFrom(old)
        model.ir_version = 4
    try:
        return onnx.version_converter.convert_version(model, opset)
    except _converter_errors():
        if opset > onnx_file.opset(model):
            raise
        return onnx_lowering.lower(model, opset)


def _too_new(was: int, opset: int, error: Exception) -> ConversionFailed:
    if isinstance(error, ConversionFailed):
        return error
    return ConversionFailed(
        f"Opset {was} could not be lowered to {opset}, the newest that the target's onnxruntime loads: "
        f"{first_line(error)}.",
        hint=f"Export the model with opset {opset} or lower.",
    )


def _drop_weight_inputs(model: onnx.ModelProto) -> bool:
    """Take away inputs that only name a weight, as old files have them; return whether there were some.

    onnxruntime takes them for values that a client may change, and folds none of them.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    kept = [value for value in model.graph.input if value.name not in weights]
    if len(kept) == len(model.graph.input):
        return False
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.ir_version = max(model.ir_version, 4)
    return True


def _converter_errors() -> tuple[type[Exception], ...]:
    import onnx

    refused = onnx.version_converter.ConvertError
    return (
        *RAISED_BY_MODELS,
        ConversionFailed,
        refused,
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
    )


def optimize_file(source: Path, folder: Path, level: str, *, threads: int, big: bool) -> Path:
    """Write what onnxruntime makes of ``source`` at ``level`` below ``folder``; return the file.

    Raises ConversionFailed when onnxruntime refuses the model.
    """
    import onnxruntime

    folder.mkdir(parents=True, exist_ok=True)
    file = folder / onnx_file.MODEL_FILE
    options = onnx_file.session_options(threads)
    options.graph_optimization_level = (
        onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        if level == "basic"
        else onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    )
    options.optimized_model_filepath = str(file)
    # Weights laid out for this CPU's kernels are of no use here, and take as much memory as the weights.
    options.add_session_config_entry("session.disable_prepacking", "1")
    if big:
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", onnx_file.DATA_FILE)
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "0")
    onnx_file.session(source, options=options, without=_NOT_WRITTEN)
    return file
