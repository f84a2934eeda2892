"""Read an ONNX file or folder: graph, inputs, outputs, operators, parameters, external data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from analyzer import onnx_wire
from analyzer.draft import Draft, clean, cut_short, listing
from analyzer.formats import Seen
from analyzer.hf_folder import read_json, read_settings, transformer_folder
from analyzer.onnx_values import CARRIED, TYPES, Value, batch_names, spec_of, text, value_of, zipped_spec_of
from analyzer.questions import which_shapes
from schemas.catalog import SERVED_IR, SERVED_OPSET
from schemas.descriptor import KnownBy
from schemas.errors import LimitExceeded, ModelFailed, Quarantined, Unsupported

MAX_PROTOBUF_BYTES = (2 << 30) - 1
MAX_SUBGRAPHS = 100_000
MAX_TYPES = 1000
"""Tensors that are served as others and named in the descriptor; one is enough for the original not to be served."""
RUNTIME_DOMAINS = frozenset(
    {"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc"}
)
"""Operator domains that onnxruntime's CPU build has."""
_GRAPH_NAMES = frozenset({"main_graph", "torch_jit", "torch-jit-export", "model"})
"""Names that exporters give every graph."""
_MATRIX_OPERATORS = frozenset({"MatMul", "Gemm", "FusedMatMul", "FusedGemm", "Attention", "LSTM"})


def read_onnx(draft: Draft, seen: Seen) -> None:
    """Fill ``draft`` from the ONNX file ``draft.path``, or from ``entry`` inside the folder it is."""
    path = draft.file
    model = _parse(path)
    graph = model.graph
    if not graph.node:
        raise ModelFailed("This ONNX file's graph is empty: it has no nodes.", hint="Export the model again.")
    opsets = {text(opset.domain): opset.version for opset in model.opset_import}
    draft.know(
        framework="onnx",
        framework_version=f"IR {model.ir_version}",
        producer=f"{text(model.producer_name)} {text(model.producer_version)}".strip(),
        opset=opsets.get("", opsets.get("ai.onnx")),
        architecture=None if text(graph.name) in _GRAPH_NAMES else text(graph.name),
    )
    newer = [
        f"{what} {have} (up to {most})"
        for what, have, most in (
            ("opset", opsets.get("", opsets.get("ai.onnx", 0)), SERVED_OPSET),
            ("IR version", model.ir_version, SERVED_IR),
        )
        if have > most
    ]
    if newer:
        draft.note(
            f"It is newer than what the target's onnxruntime loads: {' and '.join(newer)}. It cannot be served as it "
            "is; the optimised candidate is written in an older one where nothing in it is newer."
        )
    counts: dict[str, int] = {}
    tensors = list(graph.initializer)
    for node in _nodes(model):
        domain, op_type = text(node.domain), text(node.op_type)
        name = op_type if domain in ("", "ai.onnx") else f"{domain}::{op_type}"
        counts[name] = counts.get(name, 0) + 1
        tensors.extend(attribute.t for attribute in node.attribute if attribute.HasField("t"))
    draft.operators(counts)
    _external(draft, path, tensors, in_folder="entry" in draft.facts)
    initializers = [*graph.initializer, *(sparse.values for sparse in graph.sparse_initializer)]
    draft.parameters(_sizes([*initializers, *(t for t in tensors[len(graph.initializer) :] if math.prod(t.dims) > 1)]))
    draft.know(matrix_bytes=_matrix_bytes(graph))
    _metadata(draft, model)
    if path != draft.path and (settings := transformer_folder(draft.path)) is not None:
        read_settings(draft, settings, read_json(settings / "config.json", "config.json"))
    _signature(draft, graph)
    _check_domains(model, counts)


def _parse(path: Path) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    size = path.stat().st_size
    sight = onnx_wire.sight(path)
    if sight is not None and sight.missing_bytes:
        raise cut_short("ONNX file", f"{sight.missing_bytes} bytes of its graph are missing after byte {size}")
    if size > MAX_PROTOBUF_BYTES or (sight is not None and sight.graph_fields > onnx_wire.MAX_GRAPH_FIELDS):
        raise LimitExceeded(
            f"This ONNX file has {size} bytes in one message, above protobuf's limit of 2 GiB or of any sane graph.",
            hint="Save it with external data (`onnx.save_model(..., save_as_external_data=True)`) and drop the folder.",
            limit=MAX_PROTOBUF_BYTES,
            actual=size,
        )
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except (DecodeError, ValueError, RecursionError) as error:
        raise ModelFailed(
            f"This ONNX file can't be parsed ({clean(str(error), 120)}); it is damaged or was not fully written.",
            hint="Export the model again and copy it again.",
        ) from None
    return model


def _nodes(model: Any) -> Iterator[Any]:
    """Yield every node, also those in subgraphs and local functions."""
    bodies = [model.graph, *model.functions]
    visited = 0
    while bodies and visited < MAX_SUBGRAPHS:
        body = bodies.pop()
        visited += 1
        for node in body.node:
            yield node
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    bodies.append(attribute.g)
                bodies.extend(attribute.graphs)


def _check_domains(model: Any, counts: dict[str, int]) -> None:
    known = RUNTIME_DOMAINS | {text(function.domain) for function in model.functions}
    foreign = sorted(name for name in counts if name.rpartition("::")[0] not in known)
    if foreign:
        raise Unsupported(
            f"This ONNX file uses operators that onnxruntime does not have: {listing(foreign)}.",
            hint="Export it without custom operators; libraries of custom operators are not loaded.",
        )


def _external(draft: Draft, path: Path, tensors: list[Any], *, in_folder: bool) -> None:
    """Locate the files that hold weights outside the graph and check that they are there, whole."""
    needed: dict[str, int] = {}
    for tensor in tensors:
        if tensor.data_location != 1:  # TensorProto.EXTERNAL
            continue
        facts = {text(item.key): text(item.value) for item in tensor.external_data}
        location = facts.get("location", "")
        parts = PurePosixPath(location).parts
        if (
            not location
            or location.startswith("/")
            or ".." in parts
            or "\\" in location
            or ":" in location
            or "\0" in location
        ):
            raise Quarantined(
                f"This ONNX file reads weights ({clean(text(tensor.name), 80)!r}) from {clean(location, 120)!r}, "
                "outside its own folder, as no exporter writes.",
                hint="Do not run it; get the model from a source you trust.",
            )
        end = _number(facts.get("offset")) + (_number(facts.get("length")) or _size(tensor))
        needed[location] = max(needed.get(location, 0), end)
    if not needed:
        return
    for location, size in needed.items():
        file = path.parent / location
        if not in_folder or not file.is_file() or file.is_symlink():
            raise ModelFailed(
                f"This ONNX file keeps its weights in {clean(location, 120)!r} beside it, which is not here.",
                hint="Put both into one folder and drop the folder.",
            )
        if file.stat().st_size < size:
            raise cut_short(
                "ONNX model",
                f"its weights need {size} bytes of {clean(location, 120)!r}, which has {file.stat().st_size}",
            )
    draft.know(files=(str(draft.facts.get("entry")), *sorted(needed)))


def _number(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 16 else 0


def _size(tensor: Any) -> int:
    count: int = math.prod(max(0, n) for n in tensor.dims)
    bits: int = TYPES.get(tensor.data_type, ("", 8))[1]
    return (count * bits + 7) // 8


def _sizes(tensors: list[Any]) -> Iterator[tuple[str, int, int]]:
    for tensor in tensors:
        yield TYPES.get(tensor.data_type, ("unknown", 0))[0], math.prod(max(0, n) for n in tensor.dims), _size(tensor)


def _matrix_bytes(graph: Any) -> int:
    """Return the bytes of the main graph's constants that a matrix product multiplies by."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.output:
            constants.update((node.output[0], attribute.t) for attribute in node.attribute if attribute.HasField("t"))
    used = {
        name
        for node in graph.node
        if node.op_type in _MATRIX_OPERATORS
        for name in node.input[1:3]
        if name in constants
    }
    return sum(_size(constants[name]) for name in used)


def _metadata(draft: Draft, model: Any) -> None:
    facts = {text(prop.key).lower(): text(prop.value) for prop in list(model.metadata_props)[:1000]}
    draft.know(
        license=facts.get("license"), task=_TASKS.get(facts.get("task", "")), architecture=facts.get("model_type")
    )


_TASKS = {"detect": "object-detection", "classify": "image-classification", "segment": "image-segmentation"}
"""Task names that Ultralytics writes into its exports."""


def _signature(draft: Draft, graph: Any) -> None:
    initialized = {tensor.name for tensor in graph.initializer} | {s.values.name for s in graph.sparse_initializer}
    inputs = [value for value in graph.input if value.name not in initialized]
    if not graph.output:
        raise ModelFailed("This ONNX file's graph has no outputs.", hint="Export the model again.")
    if not inputs:
        raise Unsupported(
            "This ONNX file takes no inputs: it gives the same answer always, and Triton serves no such model.",
            hint="Export it with its inputs.",
        )
    zipped = {text(output) for node in graph.node if node.op_type == "ZipMap" for output in node.output}
    takes, gives = [value_of(info) for info in inputs], [value_of(info) for info in graph.output]
    types: dict[str, str] = {}
    for side, values in (("input", takes), ("output", gives)):
        names = [value.name for value in values]
        for value in values:
            name = clean(value.name, 80)
            if side == "output" and value.name in zipped:
                draft.note(
                    f"{name!r} is a list of maps from class to number; it is served as a tensor, a column a class."
                )
                continue
            if names.count(value.name) > 1:
                raise ModelFailed(
                    f"This ONNX file declares the {side} {name!r} more than once.", hint="Export it again."
                )
            _check_served(side, value)
            if value.type_in_file:
                _note_type(types, value.name, value.type_in_file)
                draft.note(f"The {side} {name!r} {_served_as(value)}")
    bare = [value for value in takes if value.axes is None]
    if any(value.name not in draft.told_inputs for value in bare):
        raise which_shapes(takes)
    for value in bare:
        _note_type(types, value.name, value.type_in_file or "tensor without a shape")
    draft.know(types_in_file=types)
    batch = batch_names(value.axes for value in takes)
    described = [
        zipped_spec_of(value, batch) if value.name in zipped else spec_of(value, batch) for value in (*takes, *gives)
    ]
    if None in described:
        draft.note("Some inputs or outputs declare no type or shape; running the model will tell them.")
        return
    specs = [spec for spec in described if spec is not None]
    draft.know(inputs=tuple(specs[: len(takes)]), outputs=tuple(specs[len(takes) :]))
    _flops(draft, graph)


def _note_type(types: dict[str, str], name: str, kind: str) -> None:
    if len(types) < MAX_TYPES and name == clean(name, 256):
        types[name] = kind


def _check_served(side: str, value: Value) -> None:
    name = clean(value.name, 80)
    if value.held_in not in CARRIED:
        raise Unsupported(
            f"The {side} {name!r} of this ONNX file is a {value.held_in}, not a tensor; Triton serves tensors.",
            hint="From scikit-learn, convert with `options={'zipmap': False}`; otherwise export plain tensors.",
        )
    if value.element and (value.dtype is None or (value.held_in and value.dtype != value.element)):
        raise Unsupported(
            f"The {side} {name!r} of this ONNX file is of type {value.element}, which Triton does not serve.",
            hint="Export it with a float, integer, bool or string tensor there.",
        )


def _served_as(value: Value) -> str:
    """Return the end of a sentence that begins with the tensor's name."""
    if "sequence" in value.held_in:
        return (
            "is a sequence of tensors; it is served as one tensor with an axis more in front, their number, and so "
            "all of them have one shape."
        )
    if value.held_in:
        return "is optional in the file and always there when it is served."
    return f"is {value.element}, which Triton does not serve; it is {value.dtype} when it is served."


def _flops(draft: Draft, graph: Any) -> None:
    """Count multiply-adds of Conv, Gemm and MatMul for one row where every shape they need is declared."""
    from analyzer.onnx_flops import count

    shapes: dict[str, list[int | str]] = {}
    for info in [*graph.input, *graph.value_info, *graph.output]:
        value = value_of(info)
        if value.axes is not None and not value.held_in:
            shapes[value.name] = list(value.axes)
    for tensor in graph.initializer:
        shapes[tensor.name] = [int(n) for n in tensor.dims]
    batch = batch_names(shapes.get(spec.name) for spec in draft.facts.get("inputs", ()))
    rows = {
        name: [1 if isinstance(d, str) and i == 0 and d in batch else d for i, d in enumerate(dims)]
        for name, dims in shapes.items()
    }
    draft.know(KnownBy.GUESS, flops=count(graph, rows))
