"""Run ONNX with onnxruntime on the CPU, as Triton's onnxruntime backend would."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from converters import ort_values
from converters.arrays import Array, Arrays, cast, plain
from converters.domain import Domain
from converters.lookup_keys import onnx_keys, with_keys
from converters.onnx_file import onnxruntime_errors, reason, session_options, shape
from converters.served_interface import fed
from converters.served_types import make_plain
from converters.zip_maps import zip_maps
from schemas.descriptor import Dim, DType, KnownBy, TensorSpec
from schemas.errors import ModelFailed, Unsupported

if TYPE_CHECKING:
    import onnx

_ONNX_DTYPES: dict[str, DType] = {
    "float": "float32", "double": "float64", "float16": "float16", "bfloat16": "bfloat16",
    "int64": "int64", "int32": "int32", "int16": "int16", "int8": "int8",
    "uint64": "uint64", "uint32": "uint32", "uint16": "uint16", "uint8": "uint8", "bool": "bool", "string": "string",
    "float8e4m3fn": "float16", "float8e4m3fnuz": "float16", "float8e5m2": "float16", "float8e5m2fnuz": "float16",
}  # fmt: skip
"""onnxruntime's names of types to ours; float8 is kept as float16, which holds all its values."""
_KEEPS_VALUES = frozenset({"Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose"})


class OnnxRunner:
    """One onnxruntime session on the CPU; never another provider, never more than ``threads`` threads."""

    runtime = "onnxruntime"

    def __init__(self, path: Path, *, threads: int = 1, fuse: bool = True) -> None:
        """Load ``path``. ``fuse=False`` runs the graph as it is written. Raises ModelFailed when it does not load."""
        import onnxruntime

        options = session_options(threads)
        level = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if fuse else level.ORT_DISABLE_ALL
        # Idle pool threads would otherwise spin on the cores while another contender is being timed.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self.path = path
        self._errors = onnxruntime_errors()
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except self._errors as error:
            why = reason(error)
            raise ModelFailed(f"onnxruntime cannot load {path.name}: {why}.", hint=_hint(why)) from error
        self._by_value = ort_values.are_needed(self._session)
        takes, gives = self._session.get_inputs(), self._session.get_outputs()
        self._maps, shapes = _held(path, (*takes, *gives))
        self._lists = frozenset(node.name for node in (*takes, *gives) if "seq(" in node.type)
        if self._by_value and self._lists:
            raise Unsupported(
                f"{path.name} has sequences beside tensors of bfloat16 or float8, which onnxruntime's Python interface "
                "carries one without the other.",
                hint="Export the model with float32 tensors, or without sequences, at its ends.",
            )
        self.inputs = tuple(_spec(node, shapes) for node in takes)
        self.outputs = tuple(
            _zipped(node, self._maps[node.name], self.inputs) if node.name in self._maps else _spec(node, shapes)
            for node in gives
        )
        self._specs = {spec.name: spec for spec in self.inputs}
        self._outputs = [spec.name for spec in self.outputs]

    @property
    def domains(self) -> Mapping[str, Domain]:
        """Bounds of integer inputs that index an embedding, and the keys of the tables that inputs are looked up in."""
        import onnx

        graph = onnx.load(str(self.path), load_external_data=False).graph
        return with_keys(gather_limits(graph), self.inputs, onnx_keys(graph))

    def run(self, feeds: Mapping[str, Array]) -> Arrays:
        """Return the outputs by name. Raises ModelFailed when the model refuses these inputs."""
        values = self._prepared(feeds)
        session, names = self._session, self._outputs
        given = self._running(
            (lambda: ort_values.run(session, names, values)) if self._by_value else (lambda: session.run(names, values))
        )()
        return {name: self._kept(name, value) for name, value in zip(names, given, strict=True)}

    def bind(self, feeds: Mapping[str, Array]) -> Callable[[], object]:
        """Return a call that runs ``feeds`` once and leaves the outputs as the runtime gives them, for timing."""
        values, session, names = self._prepared(feeds), self._session, self._outputs
        if self._by_value:
            binding = ort_values.bound(session, names, values)
            return self._running(lambda: session.run_with_iobinding(binding))
        return self._running(lambda: session.run(names, values))

    def _prepared(self, feeds: Mapping[str, Array]) -> dict[str, Any]:
        """Return what onnxruntime takes of ``feeds``. Raises ModelFailed when an input is missing."""
        ready = {name: self._fed(feeds[name], spec) for name, spec in self._specs.items() if name in feeds}
        missing = [name for name in self._specs if name not in ready]
        if missing:
            raise ModelFailed(f"The model takes an input {missing[0]!r} that was not given.", hint=self._signature())
        return ort_values.ready(self._session, ready) if self._by_value else ready

    def _running(self, call: Callable[[], Any]) -> Callable[[], Any]:
        """Return ``call``, raising ModelFailed where onnxruntime refuses."""
        errors = self._errors

        def run() -> Any:
            try:
                return call()
            except errors as error:
                raise ModelFailed(
                    f"onnxruntime could not run the model: {reason(error)}.", hint=self._signature()
                ) from error

        return run

    def _fed(self, array: Array, spec: TensorSpec) -> Any:
        array = fed(cast(array, spec), spec.shape)
        if spec.name in self._lists:
            return [part.astype(object) if spec.dtype == "string" else np.array(part) for part in array]
        return array.astype(object) if spec.dtype == "string" else np.ascontiguousarray(array).reshape(array.shape)

    def _kept(self, name: str, value: Any) -> Array:
        if name in self._maps:
            classes = self._maps[name]
            return np.array([[row[label] for label in classes] for row in value], np.float32).reshape(-1, len(classes))
        if name in self._lists and isinstance(value, list):
            value = _stacked(name, value)
        if not isinstance(value, np.ndarray):
            raise Unsupported(
                "An output of the model is a sequence or a map, not a tensor.",
                hint="Convert scikit-learn models with the option zipmap=False.",
            )
        array = plain(value)
        return array.astype(np.float32) if array.dtype.name == "bfloat16" else array

    def _signature(self) -> str:
        takes = ", ".join(f"{spec.name}: {spec.dtype}{list(spec.shape)}" for spec in self.inputs)
        return f"It takes {takes}."[:1000]


def _held(path: Path, nodes: Sequence[Any]) -> tuple[dict[str, tuple[int | str, ...]], dict[str, tuple[Dim, ...]]]:
    """Return what is held in lists: the classes of outputs that are lists of maps, and the shapes of tensors in others.

    A shape has the number of tensors in front.
    """
    if all(node.type.startswith("tensor(") for node in nodes):
        return {}, {}
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    classes = zip_maps(model.graph)
    make_plain(model)
    return classes, {value.name: shape(value) for value in (*model.graph.input, *model.graph.output)}


def _stacked(name: str, parts: list[Any]) -> Array:
    """Return the tensors of a sequence as one. Raises Unsupported when they have other shapes, or there are none."""
    shapes = {np.shape(part) for part in parts}
    if len(shapes) != 1 or not all(isinstance(part, np.ndarray | np.generic) for part in parts):
        what = "has no tensors" if not parts else "has tensors of different shapes"
        raise Unsupported(
            f"Output {name!r} is a sequence that {what}; a sequence is served as one tensor, all of one shape.",
            hint="Export the model with a tensor there, padded to one shape.",
        )
    return np.stack(parts)


def _zipped(node: Any, classes: Sequence[int | str], inputs: Sequence[TensorSpec]) -> TensorSpec:
    rows = next((spec.shape[0] for spec in inputs if spec.shape), f"{node.name}_0")
    return TensorSpec(name=node.name, dtype="float32", shape=(rows, len(classes)), known_by=KnownBy.HEADER)


def _spec(node: Any, shapes: Mapping[str, tuple[Dim, ...]]) -> TensorSpec:
    """Return ``node`` as the tensor it is served as; ``shapes`` has those of tensors that are held in something."""
    held = re.fullmatch(r"(?:optional\()?(?:seq\()?tensor\((\w+)\)+", node.type)
    inner = held[1] if held is not None else ""
    if inner not in _ONNX_DTYPES:
        raise Unsupported(
            f"Tensor {node.name!r} of the model has type {node.type}, and only tensors can be served.",
            hint="Export the model so that it takes and gives tensors; for scikit-learn use zipmap=False.",
        )
    axes = shapes.get(node.name) or tuple(
        dim if isinstance(dim, int) else (dim or f"{node.name}_{position}") for position, dim in enumerate(node.shape)
    )
    return TensorSpec(name=node.name, dtype=_ONNX_DTYPES[inner], shape=axes, known_by=KnownBy.HEADER)


def _hint(why: str) -> str:
    if "Could not find an implementation" in why:
        return (
            "onnxruntime runs most operators from opset 7 on. For an older file try "
            "`onnx.version_converter.convert_version(model, 17)` and drop what it gives."
        )
    if "IR version" in why:
        return "Save it with an older version: `model.ir_version = 10` before `onnx.save`."
    if "locale" in why:
        return "Give its StringNormalizer the attribute locale='C.UTF-8', which every machine has."
    return "The file may be damaged, lack its external data, or use an operator that onnxruntime has not."


def gather_limits(graph: onnx.GraphProto) -> dict[str, Domain]:
    """Return, for each integer input that indexes a stored table, how many rows the smallest such table has."""
    tables = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    origin = {value.name: value.name for value in graph.input if value.name not in tables}
    limits: dict[str, int] = {}
    for node in graph.node:
        if node.op_type in _KEEPS_VALUES and node.input and node.input[0] in origin:
            origin[node.output[0]] = origin[node.input[0]]
        if node.op_type == "Gather" and node.input[0] in tables and node.input[1] in origin:
            axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
            rows, name = tables[node.input[0]][axis], origin[node.input[1]]
            limits[name] = min(rows, limits.get(name, rows))
    return {name: Domain(limit=limit) for name, limit in limits.items()}
