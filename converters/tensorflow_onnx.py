"""Keras files, SavedModels and TFLite files to ONNX, by tf2onnx.

tf2onnx reads a frozen TensorFlow graph or a TFLite file. Its ``from_keras`` fails on Keras 3, so a Keras model is
traced here, and its graph is given to tf2onnx as that of a SavedModel is.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from converters import graph_interface, onnx_file, tensorflow_operators, tensorflow_source, tensorflow_tables
from converters.graph_walk import all_graphs, all_nodes
from converters.model_errors import first_line
from converters.runners import descriptor_of
from converters.silence import quiet
from converters.tensorflow_runner import TensorflowRunner
from converters.tensorflow_source import TensorflowModel
from converters.tflite_runner import TfliteRunner
from converters.trace_inputs import trace_cases
from schemas.descriptor import ModelDescriptor
from schemas.errors import ConversionFailed
from schemas.step_io import StepContext, StepOutcome

if TYPE_CHECKING:
    import onnx

_RAN = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""Domains whose operators onnxruntime has without a library of its own."""
_SIGNATURE = "serving_default"
_XLA = b"_XlaMustCompile"


def convert_saved_model(context: StepContext) -> StepOutcome:
    """Convert input ``model``, a SavedModel folder, by its served signature. Raises ConversionFailed."""
    context.progress(0.05, "Loading the SavedModel")
    descriptor, threads = descriptor_of(context), context.request.threads
    source = tensorflow_source.load(context.input("model"), descriptor, threads=threads)
    runner = TensorflowRunner(source, threads=threads)
    if _XLA not in (context.input("model") / "saved_model.pb").read_bytes():
        return _finish(context, _from_graph(context, source), runner)
    with tempfile.TemporaryDirectory() as copied:
        folder = Path(copied, "model")
        shutil.copytree(context.input("model"), folder, copy_function=shutil.copyfile)
        _strip_xla(folder / "saved_model.pb")
        source = tensorflow_source.load(folder, descriptor, threads=threads)
        return _finish(context, _from_graph(context, source), runner)


def convert_keras(context: StepContext) -> StepOutcome:
    """Convert input ``model``, a Keras file, from its traced function or through a SavedModel of it.

    Raises ConversionFailed that names the operators tf2onnx has no converter for.
    """
    context.progress(0.05, "Loading the Keras model")
    source = tensorflow_source.load(context.input("model"), descriptor_of(context), threads=context.request.threads)
    runner = TensorflowRunner(source, threads=context.request.threads)
    if context.options.through == "graph":
        return _finish(context, _from_graph(context, source), runner)
    tf = tensorflow_source.tensorflow(context.request.threads)
    with tempfile.TemporaryDirectory() as folder:
        context.progress(0.2, "Exporting it as a SavedModel")
        module = tf.Module()
        module.model = source.trackable
        with _failing("TensorFlow cannot save it as a SavedModel"), quiet():
            tf.saved_model.save(module, folder, signatures={_SIGNATURE: source.function})
        _strip_xla(Path(folder, "saved_model.pb"))
        loaded = tf.saved_model.load(folder)
        saved = TensorflowModel(
            loaded, loaded.signatures[_SIGNATURE], source.inputs, source.arguments, source.outputs, _SIGNATURE
        )
        return _finish(context, _from_graph(context, saved), runner)


def convert_tflite(context: StepContext) -> StepOutcome:
    """Convert input ``model``, a TFLite file; quantised tensors become QDQ. Raises ConversionFailed."""
    descriptor = descriptor_of(context)
    path = context.input("model")
    file = path / descriptor.entry if path.is_dir() and descriptor.entry else path
    context.progress(0.05, "Loading the TFLite model")
    runner = TfliteRunner(file, threads=context.request.threads)
    context.progress(0.3, "Converting to ONNX")
    with _failing("tf2onnx cannot convert it"), quiet(), tempfile.TemporaryDirectory() as folder:
        from tf2onnx import convert

        _silence()
        named = Path(folder, "model.tflite")
        named.symlink_to(file.resolve())
        model, _ = convert.from_tflite(str(named), opset=context.options.opset)
    _rename_inputs(model, runner.input_names)
    graph_interface.place_outputs(model, runner.output_names)
    return _finish(context, model, runner)


def _from_graph(context: StepContext, source: TensorflowModel) -> onnx.ModelProto:
    """Freeze the function's variables and translate its graph."""
    from tf2onnx import convert, tf_loader

    context.progress(0.3, "Converting to ONNX")
    tf = tensorflow_source.tensorflow(context.request.threads)
    function = source.function
    size_bytes = sum(v.dtype.size * max(v.shape.num_elements() or 0, 0) for v in function.variables)
    if size_bytes > onnx_file.INLINE_BYTES:
        raise ConversionFailed(
            f"The model has {size_bytes >> 20} MiB of weights, and a frozen TensorFlow graph ends at 2 GiB.",
            hint="Save it in float16, or serve it in parts.",
        )
    wanted = {f"{argument}": spec.name for argument, spec in zip(source.arguments, source.inputs, strict=True)}
    captured = {id(tensor) for tensor in function.graph.internal_captures}
    inputs = {t.name: t for t in function.inputs if t.dtype != tf.resource and id(t) not in captured}
    arguments = [t for t in tf.nest.flatten(function.structured_input_signature) if isinstance(t, tf.TensorSpec)]
    # The graph's inputs stand in the order of the signature, and only the signature has the arguments' names.
    renamed = {name: wanted[str(spec.name)] for name, spec in zip(inputs, arguments, strict=True)}
    keys = sorted(source.outputs)
    outputs = [t.name for t in function.outputs if t.dtype != tf.resource]
    with _failing("tf2onnx cannot convert it"), quiet(), tf.device("/cpu:0"):
        _silence()
        frozen, tables = tf_loader.from_trackable(source.trackable, function, list(inputs), outputs, False)
        model, _ = convert._convert_common(
            frozen,
            name="model",
            continue_on_error=True,
            opset=context.options.opset,
            input_names=list(inputs),
            output_names=outputs,
            initialized_tables=tables,
            custom_op_handlers=tensorflow_tables.handlers(tables),
            tensors_to_rename={},
        )
    _rename_inputs(model, [renamed[value.name] for value in _inputs(model)])
    # TensorFlow orders a dict's values by key.
    graph_interface.place_outputs(model, [source.outputs[key] for key in keys])
    converted: onnx.ModelProto = model
    return converted


def _strip_xla(file: Path) -> None:
    """Take the mark off functions that TensorFlow is to compile, Keras's grouped convolutions among them.

    What is marked is not inlined when the graph is frozen, and tf2onnx reads no calls. The result need not run.
    """
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    content = file.read_bytes()
    if _XLA not in content:
        return
    saved = SavedModel.FromString(content)
    for graph in saved.meta_graphs:
        nodes = list(graph.graph_def.node)
        for function in graph.graph_def.library.function:
            nodes += function.node_def
            function.attr.pop(_XLA.decode(), None)
        for node in nodes:
            node.attr.pop(_XLA.decode(), None)
    file.write_bytes(saved.SerializeToString())


def _inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def _rename_inputs(model: onnx.ModelProto, names: Sequence[str]) -> None:
    """Call the graph's inputs ``names``, by position; inner tensors that already have such a name make way."""
    values = _inputs(model)
    if len(values) != len(names):
        raise ConversionFailed(
            f"tf2onnx made {len(values)} inputs of the {len(names)} that the original has.",
            hint="Remove inputs that nothing uses, and save the model again.",
        )
    old = [value.name for value in values]
    inner = {name for node in model.graph.node for name in node.output}
    taken = (inner | {tensor.name for tensor in model.graph.initializer}) - set(old)
    mapping = {name: f"{name}_inner" for name in set(names) & taken}
    mapping.update(zip(old, names, strict=True))
    for graph in all_graphs(model):
        for node in graph.node:
            node.input[:] = [mapping.get(name, name) for name in node.input]
            node.output[:] = [mapping.get(name, name) for name in node.output]
        for value in (*graph.input, *graph.output, *graph.value_info):
            value.name = mapping.get(value.name, value.name)
        for tensor in graph.initializer:
            tensor.name = mapping.get(tensor.name, tensor.name)


def _finish(context: StepContext, model: onnx.ModelProto, runner: TensorflowRunner | TfliteRunner) -> StepOutcome:
    descriptor = descriptor_of(context)
    tensorflow_operators.expand(model)
    _check_operators(model)
    notes = graph_interface.restore_inputs(model, descriptor.inputs)
    graph_interface.restore_outputs(model, [spec.name for spec in descriptor.outputs] or _names(model))
    _drop_shapes(model, descriptor)
    graph_interface.name_axes(model, descriptor.inputs, descriptor.outputs)
    onnx_file.drop_unused_opsets(model)
    cases = [case.feeds for case in trace_cases(context, runner.domains)]
    return onnx_file.finish(context, model, cases, notes)


def _names(model: onnx.ModelProto) -> list[str]:
    return [value.name for value in model.graph.output]


def _drop_shapes(model: onnx.ModelProto, descriptor: ModelDescriptor) -> None:
    """Take away what tf2onnx says of inner shapes, and what it says of an output's axis that was seen to change.

    Its sizes are those of the tensors in the file, also where an input is resized when the model runs.
    """
    del model.graph.value_info[:]
    known = {spec.name: spec for spec in descriptor.outputs}
    for value in model.graph.output:
        spec = known.get(value.name)
        if spec is not None and not value.type.tensor_type.HasField("shape"):
            value.CopyFrom(graph_interface.value_info(spec))
        dims = value.type.tensor_type.shape.dim
        if spec is None or len(dims) != len(spec.shape):
            continue
        for dim, size in zip(dims, spec.shape, strict=True):
            if isinstance(size, str):
                dim.ClearField("dim_value")


def _check_operators(model: onnx.ModelProto) -> None:
    """Raise ConversionFailed that names what tf2onnx left as TensorFlow's own operator, and where it stands."""
    import onnx

    versions = {entry.domain: entry.version for entry in model.opset_import}
    unknown: dict[str, list[str]] = {}
    for node in all_nodes(model):
        plain = node.domain in ("", "ai.onnx")
        known = onnx.defs.has(node.op_type, versions.get("", 1), "") if plain else node.domain in _RAN
        if not known:
            unknown.setdefault(node.op_type, []).append(node.name)
    if unknown:
        raise unsupported_operators(unknown)


def unsupported_operators(unknown: Mapping[str, Sequence[str]]) -> ConversionFailed:
    """Return the failure that says which operators have no ONNX form, and the first place of each."""
    listed = ", ".join(f"{kind} (at {names[0][:80] or 'an unnamed node'})" for kind, names in list(unknown.items())[:6])
    more = f" and {len(unknown) - 6} more" if len(unknown) > 6 else ""
    return ConversionFailed(
        f"tf2onnx has no ONNX operator for {listed}{more}.",
        hint="Take that part out of the model and compute it before or after, or write it with other operations; "
        "what belongs to preprocessing (strings, decoding images) is best left to the client.",
        operators=", ".join(unknown)[:500],
    )


@contextmanager
def _failing(what: str) -> Iterator[None]:
    """Turn what TensorFlow or tf2onnx raises into ConversionFailed with ``what`` before it."""
    try:
        yield
    except ConversionFailed:
        raise
    except tensorflow_source.errors() as error:
        raise ConversionFailed(f"{what}: {first_line(error)}.", hint="Another way is tried.") from error


def _silence() -> None:
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("tf2onnx")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)
