"""A pickle machine that builds inert values: it imports nothing, calls nothing and keeps bounded memory."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from analyzer.byte_source import ByteSource
from analyzer.draft import clean
from analyzer.pickle_values import (
    MAX_ARRAY_BYTES,
    Array,
    Entries,
    Global,
    Instance,
    Opaque,
    Persistent,
    Value,
    dtype_name,
    item_bytes,
    sizes,
)
from schemas.errors import ModelFailed

MAX_OPCODES = 3_000_000
MAX_KEPT_BYTES = 128 << 20
"""Strings and bytes kept in all; what is beyond is stepped over and becomes Opaque."""
MAX_STRING = 1 << 16
MAX_LINE = 1 << 20
MAX_NESTING = 8
MAX_GLOBALS = 2000

TORCH_MAGIC = 0x1950A86A20F9469CFC6C
"""The number that opens a torch file written before the zip format (torch.serialization.MAGIC_NUMBER)."""


class BrokenPickle(ModelFailed):
    """The opcodes make no pickle; ``facts['offset']`` says where."""


@dataclass
class Reading:
    """One pickle read: its value, the globals it names in order of appearance, and where it ended.

    ``complete`` is False when the opcode limit was reached first; ``root`` then holds what was built so far.
    """

    root: Value
    globals: tuple[Global, ...]
    complete: bool
    offset: int
    opcodes: int


@dataclass
class _Machine:
    source: ByteSource
    max_opcodes: int
    nesting: int = 0
    stack: list[Value] = field(default_factory=list)
    marks: list[list[Value]] = field(default_factory=list)
    memo: dict[int, Value] = field(default_factory=dict)
    found: dict[tuple[str, str], Global] = field(default_factory=dict)
    kept: int = 0
    done: bool = False
    opcodes: int = 0

    def run(self) -> Reading:
        handlers = _HANDLERS
        source = self.source
        while not self.done and self.opcodes < self.max_opcodes:
            code = source.read(1)[0]
            handler = handlers[code]
            if handler is None:
                raise ValueError(f"{code:#04x} is no instruction")
            self.opcodes += 1
            handler(self)
        bottom = self.marks[0] if self.marks else self.stack
        root = bottom[0] if bottom else None
        return Reading(root, tuple(self.found.values()), self.done, source.offset, self.opcodes)

    def number(self, size: int, *, signed: bool = False) -> int:
        return int.from_bytes(self.source.read(size), "little", signed=signed)

    def text(self, size: int, encoding: str = "utf-8") -> Value:
        data = self.data(size, MAX_STRING)
        return data.decode(encoding, "replace") if isinstance(data, bytes) else data

    def data(self, size: int, limit: int = MAX_ARRAY_BYTES) -> Value:
        if size > limit or self.kept + size > MAX_KEPT_BYTES:
            self.source.skip(size)
            return Opaque(size)
        self.kept += size
        return self.source.read(size)

    def line(self) -> bytes:
        line = self.source.line(MAX_LINE)
        self.kept += len(line)
        if self.kept > MAX_KEPT_BYTES:
            raise ValueError("it holds too much text")
        return line

    def marked(self) -> list[Value]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def name(self, module: Value, name: Value) -> Global:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a global is named by something that is no text")
        known = self.found.get((module, name))
        if known is not None:
            return known
        made = Global(module, name)
        if len(self.found) < MAX_GLOBALS:
            self.found[module, name] = made
        return made

    def set_entries(self, pairs: list[Value]) -> None:
        target = self.stack[-1]
        entries = target.entries if isinstance(target, Instance) else target
        if isinstance(entries, Entries):
            entries.pairs.extend(zip(pairs[::2], pairs[1::2], strict=False))

    def add_items(self, items: list[Value]) -> None:
        target = self.stack[-1]
        if isinstance(target, Instance):
            target.items.extend(items)
        elif isinstance(target, list):
            target.extend(items)

    def build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if not isinstance(target, Instance):
            return
        target.state = state
        kind = target.kind
        if kind is not None and kind.name == "NumpyArrayWrapper" and kind.module.endswith("numpy_pickle"):
            self.stack[-1] = self.joblib_array(target)

    def joblib_array(self, wrapper: Instance) -> Value:
        """Read the array that joblib writes raw behind the object that announces it."""
        attributes = wrapper.attributes()
        dtype, shape = dtype_name(attributes.get("dtype")), sizes(attributes.get("shape"))
        if dtype is None or shape is None:
            raise ValueError("a joblib array has no dtype or shape")
        if dtype.lstrip("<>|=") in ("O", "O8", "O4"):
            if self.nesting >= MAX_NESTING:
                raise ValueError("arrays of objects are nested too deep")
            inner = _Machine(self.source, self.max_opcodes - self.opcodes, self.nesting + 1, found=self.found)
            inner.kept = self.kept
            root = inner.run().root
            self.kept, self.opcodes = inner.kept, self.opcodes + inner.opcodes
            return root
        size = item_bytes(dtype)
        if size is None:
            raise ValueError(f"a joblib array has the unknown dtype {clean(dtype, 20)!r}")
        if attributes.get("numpy_array_alignment_bytes") is not None:
            self.source.skip(self.number(1))
        data = self.data(size * math.prod(shape))
        return Array(dtype, shape, data if isinstance(data, bytes) else None)


_Handler = Callable[[_Machine], object]


def _push(make: Callable[[_Machine], Value]) -> _Handler:
    def handler(m: _Machine) -> None:
        value = make(m)  # may replace m.stack
        m.stack.append(value)

    return handler


def _decimal(line: bytes) -> Value:
    if line in (b"00", b"01"):
        return line == b"01"
    text = line.rstrip(b"L")
    return int(text) if len(text) < 1000 else Opaque(len(text))


def _long(m: _Machine, width: int) -> Value:
    data = m.data(m.number(width), 1024)
    return int.from_bytes(data, "little", signed=True) if isinstance(data, bytes) else data


def _quoted(m: _Machine) -> Value:
    line = m.line()
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise ValueError("a quoted string has no quotes")
    text = line[1:-1].decode("latin-1")
    if "\\" not in text:
        return text
    # Only the escapes that repr() writes; a broken one is kept as it stands.
    return _ESCAPE.sub(lambda found: chr(int(found[1], 16)), text).replace("\\n", "\n").replace("\\\\", "\\")


def _call(m: _Machine) -> None:
    args = m.stack.pop()
    m.stack.append(Instance(m.stack.pop(), args))


def _new_keywords(m: _Machine) -> None:
    keywords = m.stack.pop()
    args = m.stack.pop()
    made = Instance(m.stack.pop(), args)
    if isinstance(keywords, Entries):
        made.entries.pairs.extend(keywords.pairs)
    m.stack.append(made)


def _old_object(m: _Machine) -> None:
    callee, *args = m.marked()
    m.stack.append(Instance(callee, tuple(args)))


def _global_line(m: _Machine) -> Global:
    module = m.line().decode("utf-8", "replace")
    return m.name(module, m.line().decode("utf-8", "replace"))


def _old_instance(m: _Machine) -> None:
    named = _global_line(m)
    args = tuple(m.marked())
    m.stack.append(Instance(named, args))


def _stack_global(m: _Machine) -> Value:
    name = m.stack.pop()
    return m.name(m.stack.pop(), name)


def _mark(m: _Machine) -> None:
    m.marks.append(m.stack)
    m.stack = []


def _pop(m: _Machine) -> None:
    if m.stack:
        m.stack.pop()
    else:
        m.marked()


def _tuple_of(size: int) -> _Handler:
    def handler(m: _Machine) -> None:
        if len(m.stack) < size:
            raise IndexError("a tuple has too few elements")
        m.stack[-size:] = [tuple(m.stack[-size:])]

    return handler


def _memoize(key: Callable[[_Machine], int]) -> _Handler:
    def handler(m: _Machine) -> None:
        m.memo[key(m)] = m.stack[-1]

    return handler


def _entries_from_mark(m: _Machine) -> Value:
    items = m.marked()
    return Entries(list(zip(items[::2], items[1::2], strict=False)))


def _one_entry(m: _Machine) -> None:
    value = m.stack.pop()
    m.set_entries([m.stack.pop(), value])


def _stop(m: _Machine) -> None:
    m.stack = [m.stack[-1]]
    m.marks = []
    m.done = True


def _raw_unicode(line: bytes) -> str:
    text = line.decode("latin-1")
    return _UNICODE.sub(lambda found: chr(min(int(found[1] or found[2], 16), 0x10FFFF)), text) if "\\" in text else text


_ESCAPE = re.compile(r"\\x([0-9a-fA-F]{2})")
_UNICODE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8}))")

_OPCODES: dict[bytes, _Handler] = {
    b"\x80": lambda m: m.source.skip(1),  # PROTO
    b"\x95": lambda m: m.source.skip(8),  # FRAME: a hint for buffering
    b"(": _mark,
    b".": _stop,
    b"0": _pop,
    b"1": lambda m: m.marked(),  # POP_MARK
    b"2": _push(lambda m: m.stack[-1]),
    b"N": _push(lambda m: None),
    b"\x88": _push(lambda m: True),
    b"\x89": _push(lambda m: False),
    b"I": _push(lambda m: _decimal(m.line())),
    b"L": _push(lambda m: _decimal(m.line())),
    b"F": _push(lambda m: float(m.line())),
    b"J": _push(lambda m: m.number(4, signed=True)),
    b"K": _push(lambda m: m.number(1)),
    b"M": _push(lambda m: m.number(2)),
    b"\x8a": _push(lambda m: _long(m, 1)),
    b"\x8b": _push(lambda m: _long(m, 4)),
    b"G": _push(lambda m: struct.unpack(">d", m.source.read(8))[0]),
    b"S": _push(_quoted),
    b"T": _push(lambda m: m.text(m.number(4), "latin-1")),
    b"U": _push(lambda m: m.text(m.number(1), "latin-1")),
    b"V": _push(lambda m: _raw_unicode(m.line())),
    b"X": _push(lambda m: m.text(m.number(4))),
    b"\x8c": _push(lambda m: m.text(m.number(1))),
    b"\x8d": _push(lambda m: m.text(m.number(8))),
    b"B": _push(lambda m: m.data(m.number(4))),
    b"C": _push(lambda m: m.data(m.number(1))),
    b"\x8e": _push(lambda m: m.data(m.number(8))),
    b"\x96": _push(lambda m: m.data(m.number(8))),  # BYTEARRAY8
    b"\x97": _push(lambda m: Opaque(0)),  # NEXT_BUFFER: out of band, not in the file
    b"\x98": lambda m: None,  # READONLY_BUFFER
    b")": _push(lambda m: ()),
    b"]": _push(lambda m: []),
    b"}": _push(lambda m: Entries()),
    b"\x8f": _push(lambda m: []),  # EMPTY_SET
    b"t": _push(lambda m: tuple(m.marked())),
    b"l": _push(lambda m: m.marked()),
    b"d": _push(_entries_from_mark),
    b"\x91": _push(lambda m: m.marked()),  # FROZENSET
    b"\x85": _tuple_of(1),
    b"\x86": _tuple_of(2),
    b"\x87": _tuple_of(3),
    b"a": lambda m: m.add_items([m.stack.pop()]),
    b"e": lambda m: m.add_items(m.marked()),
    b"\x90": lambda m: m.add_items(m.marked()),  # ADDITEMS
    b"s": _one_entry,
    b"u": lambda m: m.set_entries(m.marked()),
    b"c": _push(_global_line),
    b"\x93": _push(_stack_global),
    b"i": _old_instance,
    b"o": _old_object,
    b"R": _call,
    b"\x81": _call,  # NEWOBJ
    b"\x92": _new_keywords,
    b"b": lambda m: m.build(),
    b"P": _push(lambda m: Persistent(m.line().decode("latin-1"))),
    b"Q": _push(lambda m: Persistent(m.stack.pop())),
    b"p": _memoize(lambda m: int(m.line())),
    b"q": _memoize(lambda m: m.number(1)),
    b"r": _memoize(lambda m: m.number(4)),
    b"\x94": _memoize(lambda m: len(m.memo)),
    b"g": _push(lambda m: m.memo[int(m.line())]),
    b"h": _push(lambda m: m.memo[m.number(1)]),
    b"j": _push(lambda m: m.memo[m.number(4)]),
    b"\x82": _push(lambda m: Opaque(m.number(1))),  # EXT1: a copyreg extension
    b"\x83": _push(lambda m: Opaque(m.number(2))),
    b"\x84": _push(lambda m: Opaque(m.number(4))),
}
_HANDLERS = tuple(_OPCODES.get(bytes([code])) for code in range(256))


def read_pickle(source: ByteSource, *, max_opcodes: int = MAX_OPCODES) -> Reading:
    """Read one pickle from ``source`` up to its STOP, as inert values.

    Raises:
        EOFError: The bytes end first.
        BrokenPickle: They are no pickle.
    """
    machine = _Machine(source, max_opcodes)
    try:
        return machine.run()
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        reason = clean(str(error), 100) if isinstance(error, ValueError) else "its instructions do not fit together"
        raise BrokenPickle(
            f"This pickle is broken at byte {source.offset}: {reason}.",
            hint="Save the model again and copy it again.",
            offset=source.offset,
        ) from None
