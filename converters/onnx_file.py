"""ONNX files: where a model lies, its tensors and operators, saving it with external data, proving that it runs."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters import ort_values
from converters.graph_walk import all_graphs, all_nodes
from converters.model_errors import RAISED_BY_MODELS, first_line
from converters.onnx_skeleton import skeleton, write
from converters.served_interface import fed, make_servable
from schemas.catalog import SERVED_IR, SERVED_OPSET
from schemas.descriptor import Dim, DType, KnownBy, ModelDescriptor, TensorSpec
from schemas.errors import ConversionFailed, ModelFailed
from schemas.evidence import ConversionReport
from schemas.step_io import StepContext, StepOutcome

if TYPE_CHECKING:
    import onnx
    import onnxruntime

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"
OUTPUT_FOLDER = "model"
"""Below ``out/``, what every converter writes: a folder with ``model.onnx`` and, for a big model, its data."""
SMALL_BYTES = 1024
"""Tensors below it always stay in the graph, where shape inference sees their values."""
APART_BYTES = 256 << 20
"""Weights in a file of their own stay there above it: brought into the graph, they are held several times over."""
INLINE_BYTES = 1_900_000_000
"""Above it the weights go to a file of their own; protobuf ends at 2 GiB, and the graph needs room beside them."""

FLOAT32, INT64, FLOAT16, FLOAT64, _INT4 = 1, 7, 10, 11, 22
_DTYPES: dict[int, DType] = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    8: "string",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
    16: "bfloat16",
}
"""TensorProto.DataType's numbers."""
_NOISE = tuple(
    re.compile(pattern)
    for pattern in (
        r"Load model from \S+ failed:\s*",
        # A line of onnxruntime's source and the C++ function there.
        r"/onnxruntime_src/\S+:\d+ [^()]*\((?:[^()]|\([^()]*\))*\)(?:::<lambda\([^()]*\)>)?(?: const)?:?\s*",
    )
)


def find(path: Path, descriptor: ModelDescriptor | None = None) -> Path:
    """Return the ONNX file at ``path``: the file itself, the descriptor's entry, ``model.onnx`` or the only one there.

    Raises ModelFailed when there is none, or several and no entry.
    """
    if path.is_file():
        return path
    if descriptor is not None and descriptor.entry and (path / descriptor.entry).is_file():
        return path / descriptor.entry
    if (path / MODEL_FILE).is_file():
        return path / MODEL_FILE
    files = sorted(path.rglob("*.onnx"))
    if len(files) == 1:
        return files[0]
    names = ", ".join(file.relative_to(path).as_posix() for file in files[:5])
    raise ModelFailed(
        f"The folder has {len(files)} ONNX files ({names})." if files else "The folder has no ONNX file.",
        hint="Keep one, or call the one to serve model.onnx.",
    )


def load(path: Path, *, weights: bool = True) -> onnx.ModelProto:
    """Return the model at ``path`` with its external data; without ``weights``, only with what is small of it.

    Raises ModelFailed when it is empty or broken.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
        read_data_files(model, path.parent, weights)
    except (DecodeError, onnx.checker.ValidationError, *RAISED_BY_MODELS) as error:
        raise ModelFailed(
            f"The ONNX file cannot be read: {first_line(error)}.", hint="Copy or export it again."
        ) from error
    # onnx reads an empty file as an empty model, without an error.
    if not model.graph.node and not model.graph.output:
        raise ModelFailed("The ONNX file holds no graph.", hint="Copy or export it again.")
    return model


def read_data_files(model: onnx.ModelProto, folder: Path, weights: bool = True) -> None:
    """Bring the weights that lie in files beside the graph into ``model``; the small ones alone without ``weights``.

    onnx's own reader refuses files with several hard links, and every file of a stored folder has some. The analyzer
    has refused locations outside the folder; here they are refused once more.
    """
    tensors = [tensor for graph in all_graphs(model) for tensor in graph.initializer]
    tensors += [attribute.t for node in all_nodes(model) for attribute in node.attribute if attribute.HasField("t")]
    root = folder.resolve()
    for tensor in tensors:
        if tensor.data_location != tensor.EXTERNAL:
            continue
        facts = {entry.key: entry.value for entry in tensor.external_data}
        if not weights and int(facts.get("length") or SMALL_BYTES) >= SMALL_BYTES:
            continue
        file = _data_file(tensor.name, facts, root)
        with file.open("rb") as data:
            data.seek(int(facts.get("offset", 0)))
            tensor.raw_data = data.read(int(facts["length"])) if facts.get("length") else data.read()
        tensor.ClearField("external_data")
        tensor.data_location = tensor.DEFAULT


def _data_file(name: str, facts: Mapping[str, str], root: Path) -> Path:
    file = (root / facts.get("location", "")).resolve()
    if not file.is_relative_to(root) or not file.is_file():
        raise ModelFailed(
            f"The weights {name!r} lie in {facts.get('location')!r}, which is not in the model's folder.",
            hint="Put all files of the model into one folder and drop that.",
        )
    return file


def external_array(tensor: onnx.TensorProto, folder: Path) -> Any:
    """Return the float32 values of ``tensor``, mapped from its file in ``folder`` where they lie in one."""
    import numpy as np
    from onnx import numpy_helper

    if tensor.data_location != tensor.EXTERNAL:
        return numpy_helper.to_array(tensor)
    facts = {entry.key: entry.value for entry in tensor.external_data}
    file = _data_file(tensor.name, facts, folder.resolve())
    return np.memmap(file, np.float32, "r", int(facts.get("offset", 0)), tuple(tensor.dims))


def save(model: onnx.ModelProto, folder: Path) -> Path:
    """Write ``model`` as ``folder/model.onnx``, big weights in a file beside it; return the file.

    Its IR version is lowered to one that the target's onnxruntime loads, where nothing in it is newer.
    """
    import onnx

    lower_ir(model)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / MODEL_FILE
    if size_bytes(model) > INLINE_BYTES:
        onnx.save_model(
            model,
            file,
            save_as_external_data=True,
            all_tensors_to_one_file=True,
            location=DATA_FILE,
            size_threshold=SMALL_BYTES,
        )
    else:
        write(model, file)
    return file


def lower_ir(model: onnx.ModelProto) -> None:
    """Lower the IR version of ``model`` to ``SERVED_IR`` unless it holds what came later.

    Writers stamp the newest version they know. What is newer than 10: element types above int4, and nodes and models
    that name devices.
    """
    if model.ir_version <= SERVED_IR:
        return
    graphs = all_graphs(model)
    tensors = [tensor for graph in graphs for tensor in graph.initializer]
    tensors += [attribute.t for node in all_nodes(model) for attribute in node.attribute if attribute.HasField("t")]
    values = [value for graph in graphs for value in (*graph.input, *graph.output, *graph.value_info)]
    types = {tensor.data_type for tensor in tensors} | {value.type.tensor_type.elem_type for value in values}
    newer = max(types, default=0) > _INT4 or len(model.configuration) > 0
    if not newer and not any(len(node.device_configurations) for node in all_nodes(model)):
        model.ir_version = SERVED_IR


def has_data_files(path: Path) -> bool:
    """Whether the model at ``path`` keeps weights in files beside it."""
    import onnx

    if not any(part != path for part in path.parent.iterdir()):
        return False
    model = onnx.load(path, load_external_data=False)
    return any(onnx.external_data_helper.uses_external_data(tensor) for tensor in model.graph.initializer)


def is_apart(path: Path) -> bool:
    """Whether the model at ``path`` keeps so many weights in files beside it that they are best left there."""
    return size_of_folder(path) > APART_BYTES and has_data_files(path)


def size_of_folder(path: Path) -> int:
    """Return the bytes of all files in the folder of the model file ``path``."""
    return sum(part.stat().st_size for part in path.parent.rglob("*") if part.is_file())


def size_bytes(model: onnx.ModelProto) -> int:
    """Return what the weights inside ``model`` take in a file, which is nearly all of it; those elsewhere count 0.

    Protobuf's own ByteSize writes the whole model to tell its size, and fails above 2 GiB.
    """
    graphs, nodes = all_graphs(model), all_nodes(model)
    tensors = [tensor for graph in graphs for tensor in graph.initializer]
    total = 0
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        tensors += [attribute.t] if attribute.HasField("t") else [*attribute.tensors]
        total += 4 * len(attribute.floats) + 8 * len(attribute.ints)  # trees are such lists
        total += sum(map(len, attribute.strings))
    return total + sum(_size_bytes(tensor) for tensor in tensors)


def _size_bytes(tensor: onnx.TensorProto) -> int:
    import onnx

    if tensor.data_location == tensor.EXTERNAL:
        return 0
    if tensor.data_type == tensor.STRING:
        return sum(map(len, tensor.string_data))
    itemsize: int = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return itemsize * math.prod(int(size) for size in tensor.dims)


def specs(path: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return inputs and outputs of the file at ``path`` as its header has them; weights are not read."""
    import onnx

    return model_specs(onnx.load(path, load_external_data=False))


def model_specs(model: onnx.ModelProto) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return inputs, without those that only name a weight, and outputs. An axis without a name gets one of its own."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = tuple(_spec(value) for value in model.graph.input if value.name not in weights)
    return inputs, tuple(_spec(value) for value in model.graph.output)


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type") or kind.elem_type not in _DTYPES:
        what = value.type.WhichOneof("value") or "nothing known"
        raise ConversionFailed(
            f"The tensor {value.name!r} of the ONNX model is {what}, type {kind.elem_type}; "
            "only plain tensors can be served."
        )
    return TensorSpec(name=value.name, dtype=_DTYPES[kind.elem_type], shape=shape(value), known_by=KnownBy.HEADER)


def infer_types(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return ``model`` with the types and shapes that can be told from its operators."""
    import onnx

    try:
        return onnx.shape_inference.infer_shapes(model)
    except (*RAISED_BY_MODELS, onnx.shape_inference.InferenceError):  # type: ignore[misc]
        return model


def tell_types(model: onnx.ModelProto) -> None:
    """Write the types and shapes that can be told from the operators into the main graph of ``model``."""
    told = infer_types(skeleton(model)).graph
    for found, own in ((told.value_info, model.graph.value_info), (told.output, model.graph.output)):
        del own[:]
        own.extend(found)


def shape(value: onnx.ValueInfoProto) -> tuple[Dim, ...]:
    """Return the shape of a graph's input or output; a nameless dynamic axis ``i`` is called ``<tensor>_<i>``."""
    return tuple(
        dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or f"{value.name}_{axis}")
        for axis, dim in enumerate(value.type.tensor_type.shape.dim)
    )


def operators(model: onnx.ModelProto) -> dict[str, int]:
    """Return operator to count over the graph, subgraphs and functions; those not ONNX's own carry their domain."""
    counts: Counter[str] = Counter()
    functions = {(function.domain, function.name) for function in model.functions}
    for node in all_nodes(model):
        if (node.domain, node.op_type) not in functions:
            counts[f"{node.domain}::{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type] += 1
    return dict(sorted(counts.items()))


def name_nodes(model: onnx.ModelProto) -> None:
    """Give every node of the main graph a name that no other has."""
    taken: set[str] = set()
    for number, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{number}_{node.output[0] if node.output else ''}"
        taken.add(node.name)


def sort_nodes(model: onnx.ModelProto) -> None:
    """Put the nodes of ``model`` in an order in which each comes after what it reads, as ONNX asks."""
    from onnxruntime.quantization.onnx_model import ONNXModel

    ONNXModel(model).topological_sort()


def opset(model: onnx.ModelProto) -> int:
    """Return the version of ONNX's own operators that ``model`` uses."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """Return options for as many threads, which wait for each other in the way that OpenMP's are told to."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if os.environ.get("OMP_WAIT_POLICY") == "passive":
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def session(
    path: Path | bytes,
    *,
    threads: int = 1,
    options: onnxruntime.SessionOptions | None = None,
    without: Sequence[str] = (),
) -> onnxruntime.InferenceSession:
    """Open the model at ``path``, or its bytes, in onnxruntime on the CPU, ``without`` optimisers of these names.

    Raises ConversionFailed that says what onnxruntime refuses.
    """
    import onnxruntime

    options = options or session_options(threads)
    try:
        where = path if isinstance(path, bytes) else str(path)
        return onnxruntime.InferenceSession(
            where, options, providers=["CPUExecutionProvider"], disabled_optimizers=list(without)
        )
    except onnxruntime_errors() as error:
        raise ConversionFailed(
            f"onnxruntime refuses the model: {reason(error)}.", hint="It is not published; another way is tried."
        ) from error


def run(opened: onnxruntime.InferenceSession, feeds: Mapping[str, Any]) -> dict[str, Any]:
    """Return output name to array. Raises ConversionFailed with onnxruntime's reason."""
    names = [output.name for output in opened.get_outputs()]
    try:
        takes = {value.name: value.shape for value in opened.get_inputs()}
        # onnxruntime takes strings as Python objects only.
        ready = {
            name: fed(array.astype(object) if array.dtype.kind == "U" else array, takes.get(name, array.shape))
            for name, array in feeds.items()
            if name in takes or array.size  # what holds nothing may have become part of the graph
        }
        if ort_values.are_needed(opened):
            return dict(zip(names, ort_values.run(opened, names, ort_values.ready(opened, ready)), strict=True))
        return dict(zip(names, opened.run(names, ready), strict=True))
    except onnxruntime_errors() as error:
        shapes = ", ".join(f"{name} {tuple(array.shape)}" for name, array in feeds.items())
        raise ConversionFailed(f"The ONNX model does not run on {shapes}: {reason(error)}.") from error


def onnxruntime_errors() -> tuple[type[Exception], ...]:
    """Return what onnxruntime raises: its own classes share no base but Exception."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception)]
    return (*own, *RAISED_BY_MODELS)


def reason(error: BaseException) -> str:
    """Return what onnxruntime says, without what tells a person nothing: its codes, source lines and our paths."""
    text = first_line(RuntimeError(" ".join(str(error).split())), 2000)
    if text.startswith("[ONNXRuntimeError]"):
        # "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Could not find ..."
        text = text.split(" : ", 3)[-1]
    for pattern in _NOISE:
        text = pattern.sub("", text)
    return text[:300].strip().rstrip(".") or type(error).__name__


def check(model: onnx.ModelProto) -> None:
    """Run ONNX's checker on ``model``, without the bytes of big weights. Raises ConversionFailed with what it found."""
    import onnx

    try:
        onnx.checker.check_model(skeleton(model, shapes=False))
    except (*RAISED_BY_MODELS, onnx.checker.ValidationError) as error:  # type: ignore[misc]
        raise ConversionFailed(f"The converted model is not valid ONNX: {first_line(error)}.") from error


def finish(
    context: StepContext, model: onnx.ModelProto, cases: Iterable[Mapping[str, Any]], notes: Sequence[str] = ()
) -> StepOutcome:
    """Save ``model`` as the step's output, check it, run it on ``cases``, and return the outcome with its report."""
    notes = (*notes, *make_servable(model))
    context.progress(0.7, "Saving and checking the ONNX model")
    file = save(model, context.out / OUTPUT_FOLDER)
    check(model)
    context.progress(0.8, "Running the ONNX model")
    opened = session(file, threads=context.request.threads)
    for feeds in cases:
        run(opened, feeds)
    return outcome(context, file, notes, model)


def outcome(
    context: StepContext, file: Path, notes: Sequence[str] = (), model: onnx.ModelProto | None = None
) -> StepOutcome:
    """Return the outcome of a step whose model is already written and proven at ``file``; ``model`` is what it holds.

    Raises ConversionFailed when it is newer than what the target's onnxruntime loads, though ours does.
    """
    import onnx

    model = onnx.load(file, load_external_data=False) if model is None else model
    if opset(model) > SERVED_OPSET or model.ir_version > SERVED_IR:
        raise ConversionFailed(
            f"The ONNX model has opset {opset(model)} and IR version {model.ir_version}; the target's onnxruntime "
            f"loads up to opset {SERVED_OPSET} and IR version {SERVED_IR}.",
            hint=f"Export it with opset {SERVED_OPSET} or lower.",
        )
    inputs, outputs = model_specs(model)
    report = ConversionReport(
        opset=opset(model),
        operators=operators(model),
        inputs=inputs,
        outputs=outputs,
        size_bytes=size_of_folder(file),
        notes=tuple(dict.fromkeys(note[:500] for note in notes))[:50],
    )
    context.progress(1.0, "Converted")
    return StepOutcome(report=report, outputs={"model": OUTPUT_FOLDER})


def drop_unused_opsets(model: onnx.ModelProto) -> None:
    """Take away operator sets that nothing uses: onnxruntime lists all it knows, and other readers refuse some."""
    used = {name.rpartition("::")[0] for name in operators(model)} | {"", "ai.onnx"}
    used |= {function.domain for function in model.functions}
    kept = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
