"""Read a torch.export ExportedProgram (.pt2): its graph and signature are JSON, so names and shapes are known."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

from analyzer.draft import Draft, clean
from analyzer.formats import Seen
from analyzer.torch_tensors import ITEM_BYTES
from analyzer.zip_members import ZipMembers, open_zip
from schemas.descriptor import BATCH_AXIS, Dim, DType, KnownBy, TensorSpec
from schemas.errors import ModelFailed

MAX_JSON_BYTES = 128 << 20
# torch/_export/serde/schema.py, ScalarType
_SCALARS = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64",
            9: "complex32", 10: "complex64", 11: "complex128", 12: "bool", 13: "bfloat16", 28: "uint16",
            29: "float8_e4m3fn", 30: "float8_e5m2", 31: "float8_e4m3fnuz", 32: "float8_e5m2fnuz",
            33: "float8_e8m0fnu", 34: "uint32", 35: "uint64"}  # fmt: skip
_TENSOR_DTYPES: dict[str, DType] = {
    "uint8": "uint8", "int8": "int8", "int16": "int16", "int32": "int32", "int64": "int64", "float16": "float16",
    "float32": "float32", "float64": "float64", "bool": "bool", "bfloat16": "bfloat16", "uint16": "uint16",
    "uint32": "uint32", "uint64": "uint64",
}  # fmt: skip


def load_json(data: bytes, what: str) -> Any:
    """Return ``data`` as JSON. Raises ModelFailed naming ``what``."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ModelFailed(
            f"The {what} of this model is no valid JSON: {clean(str(error), 120)}.",
            hint="Save the model again and copy it again.",
        ) from None


def at(value: Any, *path: str | int) -> Any:
    """Return what is at ``path`` inside nested JSON, None where the path leaves it."""
    for key in path:
        if isinstance(value, dict):
            value = value.get(key)
        elif isinstance(value, list) and isinstance(key, int) and len(value) > key:
            value = value[key]
        else:
            return None
    return value


def rows(value: Any) -> list[dict[str, Any]]:
    """Return the JSON objects in a list, nothing for anything else."""
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def read_exported_program(draft: Draft, seen: Seen) -> None:
    """Fill ``draft`` from the newer layout (``models/*.json``) or ``serialized_exported_program.json``, the older."""
    draft.know(framework="pytorch", producer="torch.export")
    with open_zip(draft.file) as members:
        if seen.kind == "exported-program":
            models = sorted(n for n in members.names if n.startswith(f"{seen.detail}/models/") and n.endswith(".json"))
            if len(models) > 1:
                draft.note(f"The package holds {len(models)} programs; only {clean(models[0], 80)} is read.")
            graph_member = models[0]
        else:
            graph_member = "serialized_exported_program.json"
            if graph_member not in members.sizes:
                raise ModelFailed(
                    "This ExportedProgram was saved by a torch older than 2.2, whose format is not read.",
                    hint="Load it with that torch and save it again with torch.export.save of a current one.",
                )
        program = load_json(members.read(graph_member, MAX_JSON_BYTES), "graph")
        _describe(draft, program)
        if seen.kind == "exported-program":
            _weights(draft, members, seen.detail)


def _describe(draft: Draft, program: Any) -> None:
    graph = at(program, "graph_module", "graph")
    if not isinstance(graph, dict):
        raise ModelFailed("This ExportedProgram has no graph.", hint="Save it again with torch.export.save.")
    version = at(program, "torch_version")
    if isinstance(version, str):
        draft.know(framework_version=version.removeprefix("<=") or None)
    counts: dict[str, int] = {}
    for node in rows(graph.get("nodes")):
        target = node.get("target")
        if isinstance(target, str):
            name = clean(target.removeprefix("torch.ops.").replace(".", "::", 1), 120)
            counts[name] = counts.get(name, 0) + 1
    draft.operators(counts)
    modules = at(program, "graph_module", "graph", "nodes", 0, "metadata", "nn_module_stack")
    if isinstance(modules, str):
        draft.know(architecture=modules.partition(";")[0].rpartition(",")[2].rpartition(".")[2])
    signature = at(program, "graph_module", "signature")
    found = graph.get("tensor_values")
    values: dict[str, Any] = found if isinstance(found, dict) else {}
    inputs = [
        at(row, "user_input", "arg", "as_tensor", "name")
        for row in rows(at(signature, "input_specs"))
        if "user_input" in row
    ]
    batch = _batch_symbol([values.get(name) for name in inputs if isinstance(name, str)])
    described = [_spec(name, values, batch) for name in inputs]
    # The graph names its outputs after operators (linear_1); the keys that the model gives them show when it runs.
    if inputs and None not in described:
        draft.know(inputs=tuple(spec for spec in described if spec is not None))
    else:
        draft.note("Some inputs are no tensors; running the program will tell more.")
    if "graph_module" in program and "tensor_values" in graph:
        _parameters(draft, signature, values)


def _symbol(size: Any) -> str | None:
    """Return the symbol of a dynamic size: ``Symbol('s77', positive=True)`` or plain ``s77``."""
    text = at(size, "as_expr", "expr_str")
    if not isinstance(text, str):
        return None
    inner = text.partition("Symbol('")[2].partition("'")[0] if text.startswith("Symbol('") else text
    return clean(inner, 64) or None


def _batch_symbol(metas: list[Any]) -> str | None:
    """Return the symbol that leads every input, which is then named batch; running it proves or refutes that."""
    leading = {_symbol(at(meta, "sizes", 0)) for meta in metas if at(meta, "sizes")}
    return leading.pop() if len(leading) == 1 else None


def _spec(name: Any, values: dict[str, Any], batch: str | None) -> TensorSpec | None:
    meta = values.get(name) if isinstance(name, str) else None
    shape = _shape(meta, batch)
    code = at(meta, "dtype")
    dtype = _TENSOR_DTYPES.get(_SCALARS.get(code, "")) if isinstance(code, int) else None
    if shape is None or dtype is None or len(shape) > 16:
        return None
    return TensorSpec(name=clean(str(name), 256), dtype=dtype, shape=shape, known_by=KnownBy.HEADER)


def _shape(meta: Any, batch: str | None) -> tuple[Dim, ...] | None:
    sizes = at(meta, "sizes")
    if not isinstance(sizes, list):
        return None
    dims: list[Dim] = []
    for size in sizes:
        fixed, symbol = at(size, "as_int"), _symbol(size)
        if isinstance(fixed, int) and 0 <= fixed < 1 << 48:
            dims.append(fixed)
        elif symbol is not None:
            dims.append(BATCH_AXIS if symbol == batch else symbol)
        else:
            return None
    return tuple(dims)


def _parameters(draft: Draft, signature: Any, values: dict[str, Any]) -> None:
    names = [
        at(row, kind, "arg", "name")
        for row in rows(at(signature, "input_specs"))
        for kind in ("parameter", "buffer")
        if kind in row
    ]
    draft.parameters(_counted(values.get(name) for name in names if isinstance(name, str)))


def _counted(metas: Iterable[Any]) -> Iterable[tuple[str, int, int]]:
    for meta in metas:
        shape, code = _shape(meta, None), at(meta, "dtype")
        if shape is not None and isinstance(code, int) and all(isinstance(n, int) for n in shape):
            count = math.prod(n for n in shape if isinstance(n, int))
            dtype = _SCALARS.get(code, "unknown")
            yield dtype, count, count * ITEM_BYTES.get(dtype, 4)


def _weights(draft: Draft, members: ZipMembers, root: str) -> None:
    """Check that every weight the package names is there, whole."""
    name = f"{root}/data/weights/model_weights_config.json"
    configs = [name] if name in members.sizes else [n for n in members.names if n.endswith("_weights_config.json")][:1]
    for config in configs:
        table = at(load_json(members.read(config, MAX_JSON_BYTES), "table of weights"), "config")
        for weight, entry in table.items() if isinstance(table, dict) else ():
            member = f"{root}/data/weights/{at(entry, 'path_name')}"
            if member not in members.sizes:
                raise ModelFailed(
                    f"This ExportedProgram lacks the data of its weight {clean(str(weight), 100)!r}.",
                    hint="Save it again with torch.export.save and copy it again.",
                )
