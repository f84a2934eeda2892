"""The inert values that a pickle describes: names, numbers and the shapes of calls that are never made."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

Value = Any
"""None, bool, int, float, str, list, tuple, or one of the classes below. May be cyclic and deeply nested."""

MAX_ARRAY_BYTES = 1 << 20
MAX_ARRAY_ITEMS = 100_000


@dataclass(frozen=True, eq=False, repr=False)
class Global:
    """A name that the pickle would import."""

    module: str
    name: str

    @property
    def path(self) -> str:
        """``module.name``."""
        return f"{self.module}.{self.name}"


@dataclass(frozen=True, eq=False, repr=False)
class Opaque:
    """Bytes, a long string or a huge number that was stepped over; only its size is kept."""

    size_bytes: int


@dataclass(frozen=True, eq=False, repr=False)
class Persistent:
    """A persistent id: torch names storages so."""

    id: Value


@dataclass(eq=False, repr=False)
class Entries:
    """A dict: pairs in order, any keys, since keys need not be hashable here."""

    pairs: list[tuple[Value, Value]] = field(default_factory=list)
    _index: dict[str, Value] = field(default_factory=dict)
    _indexed: int = 0

    def get(self, key: str) -> Value:
        """Return the value of a string key, None when absent."""
        if self._indexed != len(self.pairs):
            self._index.update({k: v for k, v in self.pairs[self._indexed :] if isinstance(k, str)})
            self._indexed = len(self.pairs)
        return self._index.get(key)


@dataclass(eq=False, repr=False)
class Instance:
    """What a call or a class instantiation would have made."""

    callee: Value
    args: Value
    state: Value = None
    items: list[Value] = field(default_factory=list)
    entries: Entries = field(default_factory=Entries)

    @property
    def kind(self) -> Global | None:
        """The class, also where protocol 0 and 1 wrap it in copyreg._reconstructor."""
        callee, args = self.callee, self.args
        wrapped = isinstance(callee, Global) and callee.path in ("copyreg._reconstructor", "copy_reg._reconstructor")
        if wrapped and isinstance(args, tuple) and args and isinstance(args[0], Global):
            return args[0]
        return callee if isinstance(callee, Global) else None

    def attributes(self) -> Entries:
        """The instance's ``__dict__`` as far as its state tells; empty when it does not."""
        state = self.state
        if isinstance(state, tuple) and state and isinstance(state[0], Entries):
            state = state[0]
        return state if isinstance(state, Entries) else Entries()

    def arg(self, index: int) -> Value:
        """Return a positional argument, None when absent."""
        return self.args[index] if isinstance(self.args, tuple) and len(self.args) > index else None


@dataclass(eq=False, repr=False)
class Array:
    """A NumPy array in joblib's raw layout."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes | None
    items: list[Value] | None = None


_NUMPY_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMPY_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")


def sizes(value: Value) -> tuple[int, ...] | None:
    """Return ``value`` as a shape when it is a tuple of at most 32 sane sizes."""
    if not isinstance(value, tuple) or len(value) > 32:
        return None
    if not all(isinstance(n, int) and 0 <= n < 1 << 48 for n in value):
        return None
    return tuple(int(n) for n in value)


def dtype_name(value: Value) -> str | None:
    """Return NumPy's short dtype name with its byte order, for example ``<f8``, from a pickled dtype or str."""
    if isinstance(value, str):
        return value if len(value) < 32 else None
    if not isinstance(value, Instance) or value.kind is None or value.kind.name != "dtype":
        return None
    name = value.arg(0)
    if not isinstance(name, str) or len(name) >= 32:
        return None
    order = value.state[1] if isinstance(value.state, tuple) and len(value.state) > 1 else "<"
    return name if name[:1] in "<>|=" else (order if order in ("<", ">", "|") else "<") + name


def item_bytes(dtype: str) -> int | None:
    """Return the bytes of one element of a short dtype name; None for objects and what is not known."""
    kind, digits = dtype.lstrip("<>|=")[:1], dtype.lstrip("<>|=")[1:].split("[")[0]
    if kind == "b" and digits in ("1", ""):
        return 1
    if kind in "mM":
        return 8
    if not digits.isascii() or not digits.isdigit() or len(digits) > 9 or kind not in "biufcSUVa":
        return None
    return int(digits) * (4 if kind == "U" else 1)


def _raw(value: Value) -> bytes | None:
    """Return bytes as protocols 0 to 5 write them."""
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    if isinstance(value, Instance) and value.kind is not None:
        inner = value.arg(0)
        if value.kind.path == "_codecs.encode" and isinstance(inner, str):
            return inner.encode("latin-1", "replace")
        if value.kind.name in ("bytes", "bytearray"):
            return _raw(inner) if inner is not None else b""
    return value.encode("latin-1", "replace") if isinstance(value, str) else None


def as_array(value: Value) -> Array | None:
    """Return ``value`` as an Array when it is a NumPy array however it was pickled, else None."""
    if isinstance(value, Array):
        return value
    if not isinstance(value, Instance) or value.kind is None:
        return None
    module, name = value.kind.module, value.kind.name
    if module in _NUMPY_MULTIARRAY and name == "_reconstruct":
        state = value.state
        if not isinstance(state, tuple) or len(state) < 5:
            return None
        shape, dtype = sizes(state[1]), dtype_name(state[2])
        if shape is None or dtype is None:
            return None
        items = state[4] if isinstance(state[4], list) else None
        return Array(dtype, shape, None if items is not None else _raw(state[4]), items)
    if module in _NUMPY_NUMERIC and name == "_frombuffer":
        dtype, shape = dtype_name(value.arg(1)), sizes(value.arg(2))
        return Array(dtype, shape, _raw(value.arg(0))) if dtype and shape is not None else None
    return None


def elements(value: Value) -> list[str | int | float | bool] | None:
    """Return the elements of a small pickled array or list as plain values; None when they can't be told."""
    if isinstance(value, (list, tuple)):
        plain = [scalar(item) for item in value[:MAX_ARRAY_ITEMS]]
        return None if any(item is None for item in plain) else [item for item in plain if item is not None]
    array = as_array(value)
    if array is None:
        return None
    if array.items is not None:
        return elements(array.items)
    size = item_bytes(array.dtype)
    count = math.prod(array.shape)
    if not size or array.data is None or count > MAX_ARRAY_ITEMS or len(array.data) < count * size:
        return None
    cells = [_cell(array.dtype, array.data[i * size : (i + 1) * size]) for i in range(count)]
    return None if any(cell is None for cell in cells) else [cell for cell in cells if cell is not None]


def scalar(value: Value) -> str | int | float | bool | None:
    """Return a plain or NumPy scalar as a plain value."""
    if isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, Instance) and value.kind is not None:
        if value.kind.module in _NUMPY_MULTIARRAY and value.kind.name == "scalar":
            dtype, data = dtype_name(value.arg(0)), _raw(value.arg(1))
            if dtype and data is not None and item_bytes(dtype) == len(data):
                return _cell(dtype, data)
        if value.kind.name == "str_" and isinstance(value.arg(0), str):
            return str(value.arg(0))
    return None


def _cell(dtype: str, data: bytes) -> str | int | float | bool | None:
    order = ">" if dtype.startswith(">") else "<"
    kind = dtype.lstrip("<>|=")[:1]
    if kind == "U":
        return data.decode("utf-32-be" if order == ">" else "utf-32-le", "replace").rstrip("\0")
    if kind in "Sa":
        return data.decode("utf-8", "replace").rstrip("\0")
    code = {"b": {1: "?"}, "f": {2: "e", 4: "f", 8: "d"}, "i": {1: "b", 2: "h", 4: "i", 8: "q"}}.get(kind)
    if kind == "u":
        code = {1: "B", 2: "H", 4: "I", 8: "Q"}
    if dtype.lstrip("<>|=") == "i1":
        code = {1: "b"}
    if code is None or len(data) not in code:
        return None
    result: int | float | bool = struct.unpack(order + code[len(data)], data)[0]
    return result


def walk(root: Value, *, limit: int = 500_000) -> Iterator[Value]:
    """Yield every value below ``root`` once, in order, at most ``limit`` of them; safe on cycles and deep nests."""
    stack, seen = [root], set[int]()
    while stack and limit > 0:
        value = stack.pop()
        if id(value) in seen:
            continue
        children: list[Value] = []
        if isinstance(value, (list, tuple)):
            children = list(value)
        elif isinstance(value, Entries):
            children = [part for pair in value.pairs for part in pair]
        elif isinstance(value, Instance):
            children = [value.callee, value.args, value.state, value.items, value.entries]
        elif isinstance(value, Persistent):
            children = [value.id]
        elif isinstance(value, Array):
            children = value.items or []
        elif not isinstance(value, Global):
            continue
        seen.add(id(value))
        limit -= 1
        yield value
        stack.extend(reversed(children))
