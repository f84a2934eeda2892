"""Tensors as a torch pickle describes them: name, dtype, shape and storage, without their bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from analyzer.draft import Draft, listing
from analyzer.pickle_values import Entries, Global, Instance, Persistent, Value, sizes, walk

ITEM_BYTES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1,
    "uint64": 8, "uint32": 4, "uint16": 2, "uint8": 1, "bool": 1, "complex64": 8, "complex128": 16, "complex32": 4,
    "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1,
    "qint8": 1, "quint8": 1, "qint32": 4,
}  # fmt: skip
_STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128", "QInt8Storage": "qint8", "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32", "UntypedStorage": "uint8",
}  # fmt: skip
_MODULES = ("torch._utils", "torch._tensor", "torch")
MAX_TENSORS = 200_000
WEIGHT_KEYS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "ema", "params")
"""Keys under which training scripts keep the weights in a checkpoint, the usual first."""


@dataclass(frozen=True)
class Tensor:
    """One tensor: its place in a storage named ``key`` that holds ``storage_items`` elements."""

    dtype: str
    shape: tuple[int, ...]
    key: str
    storage_items: int

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes of its elements."""
        return self.count * ITEM_BYTES.get(self.dtype, 4)

    def text(self) -> str:
        """Its shape as a person writes it."""
        return "[" + ", ".join(map(str, self.shape)) + "]"


def tensor_of(value: Value) -> Tensor | None:
    """Return the tensor that ``value`` would rebuild, None when it is none."""
    for _ in range(4):
        if not isinstance(value, Instance) or value.kind is None or value.kind.module not in _MODULES:
            return None
        match value.kind.name:
            case "_rebuild_parameter" | "_rebuild_parameter_with_state":
                value = value.arg(0)
            case "_rebuild_from_type_v2":
                value = Instance(value.arg(0), value.arg(2))
            case "_rebuild_tensor" | "_rebuild_tensor_v2" | "_rebuild_tensor_v3" | "_rebuild_qtensor":
                return _from_storage(value)
            case _:
                return None
    return None


def _from_storage(value: Instance) -> Tensor | None:
    storage, shape = value.arg(0), sizes(value.arg(2))
    if shape is None or not isinstance(storage, Persistent) or not isinstance(storage.id, tuple):
        return None
    if len(storage.id) < 5 or storage.id[0] != "storage" or not isinstance(storage.id[1], Global):
        return None
    dtype = _STORAGES.get(storage.id[1].name, storage.id[1].name[:32])
    explicit = value.arg(6)
    if value.kind is not None and value.kind.name == "_rebuild_tensor_v3" and isinstance(explicit, Global):
        dtype = explicit.name[:32]
    items = storage.id[4]
    return Tensor(dtype, shape, str(storage.id[2])[:64], items if isinstance(items, int) and items >= 0 else 0)


def named_tensors(root: Value) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors below a module or dict with their dotted names, in order; bounded, safe on cycles."""
    stack: list[tuple[str, Value]] = [("", root)]
    seen: set[int] = set()
    budget = MAX_TENSORS * 4
    while stack and budget > 0:
        name, value = stack.pop()
        budget -= 1
        tensor = tensor_of(value)
        if tensor is not None:
            yield name, tensor
            continue
        if id(value) in seen or len(name) > 400:
            continue
        seen.add(id(value))
        pairs: list[tuple[Value, Value]] = []
        if isinstance(value, Instance):
            pairs = value.entries.pairs or value.attributes().pairs
        elif isinstance(value, Entries):
            pairs = value.pairs
        elif isinstance(value, (list, tuple)):
            pairs = list(enumerate(value[:1000]))
        hidden = ("_parameters", "_buffers", "_modules", "0")
        stack.extend(
            (name if key in hidden and name == "" and key != "0" else _join(name, key), child)
            for key, child in reversed(pairs)
            if isinstance(key, (str, int)) and isinstance(child, (Instance, Entries, list, tuple))
        )


def _join(name: str, key: str | int) -> str:
    if key in ("_parameters", "_buffers", "_modules"):
        return name
    return f"{name}.{str(key)[:100]}" if name else str(key)[:100]


def pairs_of(value: Value) -> list[tuple[Value, Value]] | None:
    """Return the pairs of a dict or OrderedDict, None for anything else."""
    if isinstance(value, Entries):
        return value.pairs
    if isinstance(value, Instance) and value.kind is not None and value.kind.name in ("OrderedDict", "defaultdict"):
        return value.entries.pairs
    return None


def weights_in(root: Value) -> tuple[str, list[tuple[str, Tensor]]] | None:
    """Return where a state_dict sits in what was saved ('' for the whole) and its tensors, None without one."""
    pairs = pairs_of(root)
    if pairs is None:
        return None
    own = _direct(pairs)
    if own:
        return "", own
    inside = {key: value for key, value in pairs if isinstance(key, str)}
    for key in [*(k for k in WEIGHT_KEYS if k in inside), *(k for k in inside if k not in WEIGHT_KEYS)]:
        nested = pairs_of(inside[key])
        tensors = _direct(nested) if nested is not None else []
        if tensors:
            return key, tensors
    return None


def _direct(pairs: list[tuple[Value, Value]]) -> list[tuple[str, Tensor]]:
    named = ((key, tensor_of(value)) for key, value in pairs[:MAX_TENSORS] if isinstance(key, str))
    return [(key, tensor) for key, tensor in named if tensor is not None]


def module_class(root: Value) -> str | None:
    """Return the class of the first pickled nn.Module below ``root``, None when there is none."""
    for value in walk(root):
        if (
            isinstance(value, Instance)
            and value.state is not None
            and value.attributes().get("_parameters") is not None
        ):
            kind = value.kind or _legacy_class(value.callee)
            return kind.path if kind is not None else "an unnamed class"
    return None


def module_is_root(root: Value) -> bool:
    """Whether what was saved is the module itself, or a checkpoint that holds it under one of the usual keys."""
    if isinstance(root, Instance) and root.state is not None and root.attributes().get("_parameters") is not None:
        return True
    pairs = pairs_of(root) or []
    return any(
        key in WEIGHT_KEYS and isinstance(value, Instance) and module_is_root(value)
        for key, value in pairs
        if isinstance(key, str)
    )


def _legacy_class(callee: Value) -> Global | None:
    """Torch's legacy format names classes by the persistent id ('module', class, source file, source)."""
    if isinstance(callee, Persistent) and isinstance(callee.id, tuple) and len(callee.id) > 1:
        return callee.id[1] if callee.id[0] == "module" and isinstance(callee.id[1], Global) else None
    return None


def record(draft: Draft, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Count the parameters; tensors that share one storage and shape (tied weights) count once."""
    unique = {(tensor.key, tensor.shape, tensor.dtype): tensor for _, tensor in tensors}
    draft.parameters((tensor.dtype, tensor.count, tensor.size_bytes) for tensor in unique.values())


def first_shapes(tensors: list[tuple[str, Tensor]], most: int = 3) -> str:
    """Return the first matrices and kernels as ``name [shape]``, to help a person recognise their model."""
    telling = [(name, tensor) for name, tensor in tensors if len(tensor.shape) > 1] or tensors
    return listing([f"{name} {tensor.text()}" for name, tensor in telling], most=most)
