"""How many bytes of an array follow joblib's wrapper, read off the pickle without making the wrapper."""

from __future__ import annotations

import re
from typing import Any

from analyzer.traced_values import Entries, Instance

_SIMPLE = re.compile(r"[<>|=]?([biufcSUVOmM])([0-9]{1,9})\Z")
_HAS_OBJECT = 0x01
"""NPY_ITEM_REFCOUNT of numpy's dtype flags: what ``dtype.hasobject`` tests."""
_WIDTHS = {"b": {1}, "i": {1, 2, 4, 8}, "u": {1, 2, 4, 8}, "f": {2, 4, 8, 12, 16}, "c": {8, 16, 24, 32}}


class _Unclear(ValueError):
    """The layout can't be told for sure, and so neither can what joblib would run next."""

    def __init__(self) -> None:
        super().__init__("the layout of an array cannot be told for sure")


def array_bytes(wrapper: Instance) -> int | None:
    """Return how many bytes of data joblib reads for ``wrapper``, None when a pickle follows instead.

    Raises ValueError unless shape and dtype are as numpy pickles them: a wrong number would hide opcodes.

    Source: joblib 1.6 numpy_pickle.NumpyArrayWrapper.read_array.
    """
    state = wrapper.state
    if not isinstance(state, Entries) or not state.whole or "shape" not in state.items or "dtype" not in state.items:
        raise _Unclear
    shape = state.items["shape"]
    if not isinstance(shape, tuple):
        raise _Unclear
    itemsize, has_object = _dtype(state.items["dtype"], 0)
    if has_object:
        return None
    count = 1
    for extent in shape:
        if type(extent) is not int or not 0 <= extent < 1 << 40:
            raise _Unclear
        count *= extent
        # numpy multiplies as int64; beyond it the product wraps, and so would the number of bytes read.
        if count >= 1 << 48:
            raise _Unclear
    return count * itemsize


def _dtype(dtype: Any, depth: int) -> tuple[int, bool]:
    """Return a dtype's item size in bytes and whether it holds objects."""
    if not isinstance(dtype, Instance) or dtype.made_by is None or depth > 8 or dtype.builds > 1:
        raise _Unclear
    if (dtype.made_by.module, dtype.made_by.name) != ("numpy", "dtype"):
        raise _Unclear
    args = dtype.args
    if not isinstance(args, tuple) or not args or not isinstance(args[0], str) or len(args) > 3:
        raise _Unclear
    match = _SIMPLE.match(args[0])
    if match is None:
        raise _Unclear
    kind, number = match[1], int(match[2])
    itemsize = number * 4 if kind == "U" else number
    if kind in _WIDTHS and number not in _WIDTHS[kind]:
        raise _Unclear
    state = dtype.state
    if dtype.builds == 0:
        return itemsize, kind == "O"
    if not isinstance(state, tuple) or len(state) not in (8, 9):
        raise _Unclear
    fields, elsize, flags = state[4], state[5], state[7]
    if type(elsize) is not int or type(flags) is not int:
        raise _Unclear
    if elsize != (itemsize if kind in "SUV" else -1):
        raise _Unclear
    # The flags are the pickle's own claim, and numpy believes them.
    has_object = bool(flags & _HAS_OBJECT)
    if kind == "V":
        expected = True in [_dtype(part, depth + 1)[1] for part in _parts(state[2], fields)]
    elif state[2] is None and fields is None:
        expected = kind == "O"
    else:
        raise _Unclear
    if has_object != expected:
        raise _Unclear
    return itemsize, has_object


def _parts(subarray: Any, fields: Any) -> list[Any]:
    """Return the dtypes that a structured or sub-array dtype is made of."""
    parts: list[Any] = []
    if subarray is not None:
        if not isinstance(subarray, tuple) or len(subarray) != 2:
            raise _Unclear
        parts.append(subarray[0])
    if fields is not None:
        if not isinstance(fields, Entries) or not fields.whole:
            raise _Unclear
        for entry in fields.items.values():
            if not isinstance(entry, tuple) or not entry:
                raise _Unclear
            parts.append(entry[0])
    return parts
