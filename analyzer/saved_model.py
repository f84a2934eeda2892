"""Read a TensorFlow SavedModel folder: its served signature, what that runs, and operators that reach out of it."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator

from analyzer.draft import Draft, clean, cut_short, listing
from analyzer.formats import Seen
from analyzer.keras_config import named_axes
from analyzer.onnx_wire import NotWire
from analyzer.tensorflow_danger import judge
from analyzer.tensorflow_graph import GraphReader, MetaGraph, Signature, TensorInfo
from schemas.descriptor import DType, KnownBy, TensorSpec
from schemas.errors import ModelFailed, Unsupported

MAX_TENSORS = 1000
PREFERRED = ("serving_default", "serve", "predict")
# DataType: name and bytes an element
_TYPES: dict[int, tuple[str, int]] = {
    1: ("float32", 4), 2: ("float64", 8), 3: ("int32", 4), 4: ("uint8", 1), 5: ("int16", 2), 6: ("int8", 1),
    7: ("string", 0), 8: ("complex64", 8), 9: ("int64", 8), 10: ("bool", 1), 14: ("bfloat16", 2), 17: ("uint16", 2),
    18: ("complex128", 16), 19: ("float16", 2), 22: ("uint32", 4), 23: ("uint64", 8),
}  # fmt: skip
_SPEC_DTYPES: dict[str, DType] = {
    "float32": "float32", "float64": "float64", "float16": "float16", "bfloat16": "bfloat16", "int64": "int64",
    "int32": "int32", "int16": "int16", "int8": "int8", "uint64": "uint64", "uint32": "uint32", "uint16": "uint16",
    "uint8": "uint8", "bool": "bool", "string": "string",
}  # fmt: skip
_PLUMBING = frozenset({"Identity", "NoOp", "Const", "Placeholder", "ReadVariableOp", "VarHandleOp"})
JAX_HINT = (
    "Export it to ONNX from JAX itself, where the function is defined: "
    "`jax2onnx.to_onnx(function, [('B', 32)], return_mode='file', output_path='model.onnx')`, and drop that file."
)


def read_saved_model(draft: Draft, seen: Seen) -> None:
    """Fill ``draft`` from the folder's saved_model.pb. Raises ModelFailed where it or its variables are broken."""
    folder = draft.path
    file = folder / "saved_model.pb"
    draft.know(framework="tensorflow")
    if not file.is_file() or not file.stat().st_size:
        draft.refuse(
            Unsupported(
                "This SavedModel is written as text (saved_model.pbtxt) or is empty.",
                hint="Save it again with `tf.saved_model.save`, which writes saved_model.pb.",
            )
        )
        return
    with file.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            graphs = GraphReader(data, len(data)).meta_graphs()  # type: ignore[arg-type]
        except NotWire:
            raise cut_short("saved_model.pb", "a message in it is longer than the file") from None
    if not graphs:
        raise ModelFailed("The saved_model.pb of this folder holds no graph.", hint="Save the model again.")
    graph = next((each for each in graphs if "serve" in each.tags), graphs[0])
    draft.know(framework_version=graph.version)
    for each in graphs:
        judge(draft, each.every_operator())
    _signature(draft, graph)
    _missing_files(draft)


def _missing_files(draft: Draft) -> None:
    variables = draft.path / "variables"
    names = {path.name for path in variables.iterdir()} if variables.is_dir() else set()
    if draft.facts.get("parameter_count") and "variables.index" not in names:
        draft.refuse(
            ModelFailed(
                "This SavedModel has lost its weights: the folder has no variables/variables.index.",
                hint="Copy the whole folder again, with variables/ and assets/ in it.",
            )
        )


def _variables(draft: Draft, graph: MetaGraph, signature: Signature) -> None:
    """Sum the variables that the signature reads; Keras writes every variable twice, and optimisers have theirs."""
    found = [(node.dtype, node.shape) for node in graph.served_nodes(signature) if node.shape is not None]
    kept = []
    for dtype, shape in found or [(dtype, shape) for _, dtype, shape in graph.variables]:
        kind, size_bytes = _TYPES.get(dtype, ("", 0))
        if size_bytes and all(size >= 0 for size in shape):
            kept.append((kind, math.prod(shape), math.prod(shape) * size_bytes))
    draft.parameters(kept)


def _signature(draft: Draft, graph: MetaGraph) -> None:
    names = [name for name in graph.signatures if not name.startswith("__")]
    chosen = next((name for name in PREFERRED if name in names), names[0] if len(names) == 1 else None)
    if len(names) > 1:
        served = f"; {clean(chosen)} is served" if chosen else ""
        draft.note(f"It has {len(names)} signatures: {listing(sorted(names), most=10)}{served}.")
    if chosen is None:
        draft.refuse(
            Unsupported(
                "This SavedModel has no signature, that is, no function with named inputs and outputs."
                if not names
                else f"This SavedModel has {len(names)} signatures ({listing(sorted(names))}) and none is called "
                "serving_default.",
                hint="Save it again with the one to serve: "
                "`tf.saved_model.save(model, folder, signatures={'serving_default': function})`.",
            )
        )
        return
    signature = graph.signatures[chosen]
    counts = graph.served_operators(signature)
    draft.operators({name: count for name, count in counts.items() if name not in _PLUMBING})
    if "XlaCallModule" in counts:
        draft.know(framework="jax")
        draft.refuse(
            Unsupported(
                "This SavedModel is a shell around a JAX function (XlaCallModule holds its StableHLO), and nothing "
                "that is kept converts StableHLO to ONNX.",
                hint=JAX_HINT,
            )
        )
    _variables(draft, graph, signature)
    draft.know(
        inputs=tuple(_specs(draft, signature.inputs)),
        outputs=tuple(_specs(draft, signature.outputs)),
    )


def _specs(draft: Draft, tensors: dict[str, TensorInfo]) -> Iterator[TensorSpec]:
    for name, info in list(tensors.items())[:MAX_TENSORS]:
        kind = _TYPES.get(info.dtype, (f"type {info.dtype}", 0))[0]
        dtype = _SPEC_DTYPES.get(kind)
        if dtype is None or info.shape is None or len(info.shape) > 16:
            why = "an unknown number of axes" if info.shape is None else kind
            draft.note(f"Tensor {clean(name, 80)} of its signature has {why}.")
            continue
        sizes = [None if size < 0 else size for size in info.shape]
        yield TensorSpec(
            name=clean(name),
            dtype=dtype,
            shape=named_axes(clean(name), sizes, len(tensors) == 1),
            known_by=KnownBy.HEADER,
        )
