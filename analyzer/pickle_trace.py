"""PickleTrace: the pickle virtual machine with every effect taken out.

It keeps the stack, the marks and the memo exactly as Python's unpicklers do, but what they would import or call is
only written down. Where its knowledge ends (a name that was computed, a callable that is a result), it says so: a
clean pickle is one that it followed to the end.
"""

from __future__ import annotations

import codecs
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from analyzer.joblib_array import array_bytes
from analyzer.scan_stream import Budget, ScanStream

KEEP_BYTES = 1 << 20
"""Longer constants are kept up to here, to tell whether a pickle or an archive begins in them."""
MAX_DISTINCT = 20_000
MAX_ENTRIES = 512
MAX_NESTED = 2_000
_DIGITS = re.compile(rb"[0-9]{1,18}\Z")
_MARKER = b"(cibKReduceq"


@dataclass(frozen=True)
class Global:
    """A name a pickle asks for. ``module`` and ``name`` are as written, before Python 2's names are mapped."""

    module: str
    name: str
    offset: int
    protocol: int


@dataclass
class Instance:
    """What calling ``made_by`` would give, never made. ``state`` is what BUILD would set."""

    made_by: Global | None
    args: Any = None
    state: Any = None
    builds: int = 0


@dataclass
class Entries:
    """A dict of the pickle, its string keys alone; ``whole`` ends when something could not be followed."""

    items: dict[str, Any] = field(default_factory=dict)
    whole: bool = True


@dataclass(frozen=True)
class Blob:
    """A bytes constant: ``head`` is all of it up to KEEP_BYTES."""

    head: bytes
    size_bytes: int
    offset: int


class _Other:
    """Any value whose content nothing asks for: a number, a list, a set."""

    __slots__ = ()


OTHER = _Other()
Anomaly = tuple[str, int]


class PickleTrace:
    """Follows one pickle from ``stream``'s position; afterwards the stream stands behind its STOP.

    Raises LimitExceeded of the budget; a malformed pickle ends it with ``error`` set, everything before is recorded.
    """

    def __init__(self, stream: ScanStream, budget: Budget, *, joblib: bool = False) -> None:
        """Follow as joblib's loader does when ``joblib``: only there do array bytes stand between the opcodes."""
        self.stream, self._budget, self._joblib = stream, budget, joblib
        self.start = stream.offset
        self.protocol = 0
        self.highest_protocol = 0
        self.globals: dict[tuple[str, str, bool], Global] = {}
        self.anomalies: dict[str, int] = {}
        """What only a doctored pickle does, with the offset of the first time."""
        self.nested: list[Blob] = []
        self.inner: list[PickleTrace] = []
        """Pickles that joblib reads on the way: object arrays."""
        self.persistent = False
        self.complete = False
        self.error: str | None = None
        self.value: Any = None
        self.opcodes = 0
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._frame_end: int | None = None
        self._depth = 0

    def run(self, depth: int = 0) -> PickleTrace:
        """Follow the pickle to STOP, to its end or to its first fault."""
        self._depth = depth
        read, stream = self.stream.read, self.stream
        try:
            while not self.complete:
                self._at = stream.offset
                code = read(1)[0]
                handler = _HANDLERS[code]
                if handler is None:
                    raise ValueError(f"there is no opcode 0x{code:02x}")
                handler(self)
                self.opcodes += 1
                if not self.opcodes & 0xFFF:
                    self._budget.spend_opcodes(0x1000)
                if self._frame_end is not None and stream.offset >= self._frame_end:
                    if stream.offset > self._frame_end and self._at < self._frame_end:
                        self._odd("a frame ends inside an opcode")
                    self._frame_end = None
        except (EOFError, ValueError, IndexError, KeyError, struct.error) as error:
            self.error = str(error) if isinstance(error, EOFError | ValueError) else "its stack or memo is inconsistent"
        self._budget.spend_opcodes(self.opcodes & 0xFFF)
        return self

    # What the opcodes share

    def _odd(self, what: str) -> None:
        self.anomalies.setdefault(what, self._at)

    def _ask(self, module: str, name: str) -> Global:
        found = Global(module, name, self._at, self.protocol)
        if len(self.globals) >= MAX_DISTINCT:
            raise ValueError("it names too many globals")
        return self.globals.setdefault((module, name, self.protocol < 3), found)

    def _size(self, width: int, *, signed: bool = False) -> int:
        size = int.from_bytes(self.stream.read(width), "little", signed=signed)
        if size < 0:
            raise ValueError("a size is negative")
        return size

    def _slice(self) -> list[Any]:
        items = self._stack
        self._stack = self._marks.pop()
        return items

    def _index(self) -> int:
        line = self.stream.line(64)
        if not _DIGITS.match(line):
            raise ValueError("a memo index is no number")
        return int(line)

    def _text(self, size: int) -> None:
        if size <= KEEP_BYTES:
            text = self.stream.read(size).decode("utf-8", "surrogatepass")
            self._stack.append(text)
            if size > 8 and text[0] in "\x80P\x1f":
                self._nest(Blob(text.encode("latin-1", "replace"), size, self._at))
        else:
            self.stream.skip(size)
            self._stack.append(OTHER)

    def _bytes(self, size: int) -> None:
        if size <= KEEP_BYTES:
            blob = Blob(self.stream.read(size), size, self._at)
        else:
            blob = Blob(self.stream.read(KEEP_BYTES), size, self._at)
            self.stream.skip(size - KEEP_BYTES)
        self._stack.append(blob)
        self._nest(blob)

    def _nest(self, blob: Blob) -> None:
        head = blob.head[:8]
        if (head[:1] == b"\x80" and head[1:2] <= b"\x05") or head.startswith((b"PK\3\4", b"\x1f\x8b", b"BZh", b"\x78")):
            likely = True
        else:
            likely = blob.head.rstrip(b"\n")[-1:] == b"." and head[:1] in (b"c", b"(", b"i", b"]", b"}", b"\x8c", b"X")
        if likely and blob.size_bytes > 4 and len(self.nested) < MAX_NESTED:
            self.nested.append(blob)

    def _call(self, target: Any, args: Any) -> Instance:
        if not isinstance(target, Global):
            self._odd("it calls something that is not a plain global")
            return Instance(None, args)
        return Instance(target, args)

    def _entries(self, target: Any, items: list[Any]) -> None:
        if isinstance(target, Global):
            self._odd("it writes into a global")
        if isinstance(target, Entries):
            if len(items) % 2:
                raise ValueError("a dict has a key without a value")
            for key, value in zip(items[::2], items[1::2], strict=True):
                if isinstance(key, str):
                    if len(target.items) >= MAX_ENTRIES and key not in target.items:
                        target.whole = False
                    else:
                        target.items[key] = value
                elif isinstance(key, Instance | _Other):
                    # Such a key may equal a string that is recorded already.
                    target.whole = target.whole and not isinstance(key, Instance)

    # Opcodes

    def mark(self) -> None:  # noqa: D102
        self._marks.append(self._stack)
        self._stack = []

    def stop(self) -> None:  # noqa: D102
        self.value = self._stack.pop()
        self.complete = True

    def pop(self) -> None:  # noqa: D102
        if self._stack:
            self._stack.pop()
        else:
            self._slice()

    def dup(self) -> None:  # noqa: D102
        self._stack.append(self._stack[-1])

    def line_number(self) -> None:  # noqa: D102
        line = self.stream.line(1 << 16)
        try:
            self._stack.append(int(line, 0))
        except ValueError:
            self._stack.append(OTHER)

    def line_other(self) -> None:  # noqa: D102
        self.stream.line(1 << 20)
        self._stack.append(OTHER)

    def line_string(self) -> None:  # noqa: D102
        line = self.stream.line()
        if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
            raise ValueError("a string has no quotes")
        raw = codecs.escape_decode(line[1:-1])[0]
        self._old_string(bytes(raw))

    def _old_string(self, raw: bytes) -> None:
        # What a Python 2 string becomes depends on the loader's encoding, unless it is ASCII.
        self._stack.append(raw.decode("ascii") if raw.isascii() else OTHER)
        self._nest(Blob(raw, len(raw), self._at))

    def short_string(self) -> None:  # noqa: D102
        self._old_string(self.stream.read(self._size(1)))

    def long_string(self) -> None:  # noqa: D102
        size = self._size(4, signed=True)
        if size > KEEP_BYTES:
            self.stream.skip(size)
            self._stack.append(OTHER)
        else:
            self._old_string(self.stream.read(size))

    def line_unicode(self) -> None:  # noqa: D102
        text = str(self.stream.line(), "raw-unicode-escape")
        self._stack.append(text)
        if len(text) > 8 and text[0] in "\x80P\x1f":
            self._nest(Blob(text.encode("latin-1", "replace"), len(text), self._at))

    def fixed(self, width: int) -> None:  # noqa: D102
        self.stream.read(width)
        self._stack.append(OTHER)

    def integer(self, width: int) -> None:  # noqa: D102
        self._stack.append(int.from_bytes(self.stream.read(width), "little", signed=width == 4))

    def long(self, width: int) -> None:  # noqa: D102
        size = self._size(width, signed=width == 4)
        if size > 64:
            self.stream.skip(size)
            self._stack.append(OTHER)
        else:
            self._stack.append(int.from_bytes(self.stream.read(size), "little", signed=True))

    def push(self, value: Callable[[], Any]) -> None:  # noqa: D102
        self._stack.append(value())

    def persid_line(self) -> None:  # noqa: D102
        self.stream.line(1 << 16)
        self.persistent = True
        self._stack.append(Instance(None))

    def persid(self) -> None:  # noqa: D102
        self._stack.pop()
        self.persistent = True
        self._stack.append(Instance(None))

    def global_line(self) -> None:  # noqa: D102
        module = self.stream.line(1 << 16).decode("utf-8")
        name = self.stream.line(1 << 16).decode("utf-8")
        self._stack.append(self._ask(module, name))

    def stack_global(self) -> None:  # noqa: D102
        name, module = self._stack.pop(), self._stack.pop()
        if isinstance(name, str) and isinstance(module, str):
            self._stack.append(self._ask(module, name))
        else:
            self._odd("it computes the name of a global")
            self._stack.append(Instance(None))

    def extension(self, width: int) -> None:  # noqa: D102
        self.stream.read(width)
        self._odd("it asks for a global by its number in the extension registry")
        self._stack.append(Instance(None))

    def reduce(self) -> None:  # noqa: D102
        args, target = self._stack.pop(), self._stack.pop()
        self._stack.append(self._call(target, args))

    def new_object(self) -> None:  # noqa: D102
        args, target = self._stack.pop(), self._stack.pop()
        self._stack.append(self._call(target, args))

    def new_object_ex(self) -> None:  # noqa: D102
        self._stack.pop()
        self.new_object()

    def obj(self) -> None:  # noqa: D102
        args = self._slice()
        target = args.pop(0)
        self._stack.append(self._call(target, tuple(args)))

    def inst(self) -> None:  # noqa: D102
        module = self.stream.line(1 << 16).decode("ascii")
        name = self.stream.line(1 << 16).decode("ascii")
        target = self._ask(module, name)
        self._stack.append(self._call(target, tuple(self._slice())))

    def build(self) -> None:  # noqa: D102
        state, target = self._stack.pop(), self._stack[-1]
        if not isinstance(target, Instance):
            self._odd("it sets attributes on something that it did not make")
            return
        target.builds += 1
        if isinstance(target.state, Entries) and isinstance(state, Entries):
            merged = Entries({**target.state.items, **state.items}, target.state.whole and state.whole)
            target.state = merged
        else:
            target.state = state
        made_by = target.made_by
        if made_by is not None and made_by.module == "joblib.numpy_pickle" and made_by.name == "NumpyArrayWrapper":
            self._joblib_array(target)

    def _joblib_array(self, wrapper: Instance) -> None:
        """Step over an array as joblib does: its bytes follow the BUILD that completes the wrapper."""
        if not self._joblib:
            # Another loader would take the array's bytes for opcodes.
            self._odd("it holds joblib's array wrapper where joblib's loader does not read")
            return
        if self._frame_end is not None and self.stream.offset < self._frame_end:
            self._odd("an array begins inside a frame")
            raise ValueError("an array begins inside a frame")
        self._frame_end = None
        size = array_bytes(wrapper)
        self._stack[-1] = Instance(wrapper.made_by)
        if size is not None:
            if wrapper.state.items.get("numpy_array_alignment_bytes") is not None:
                padding = self.stream.read(1)[0]
                # joblib writes 1 to 16. None of these is an opcode, so a plain unpickler stops here.
                if not 1 <= padding <= 16:
                    self._odd("the padding of an array is not what joblib writes")
                self.stream.skip(padding)
            self.stream.skip(size)
            return
        if self._depth >= 20:
            raise ValueError("its object arrays are nested too deep")
        inner = PickleTrace(self.stream, self._budget).run(self._depth + 1)
        self.inner.append(inner)
        if inner.error is not None:
            raise ValueError(inner.error)

    def append(self) -> None:  # noqa: D102
        self._stack.pop()
        if isinstance(self._stack[-1], Global):
            self._odd("it writes into a global")

    def appends(self) -> None:  # noqa: D102
        self._slice()
        if isinstance(self._stack[-1], Global):
            self._odd("it writes into a global")

    def set_item(self) -> None:  # noqa: D102
        value, key = self._stack.pop(), self._stack.pop()
        self._entries(self._stack[-1], [key, value])

    def set_items(self) -> None:  # noqa: D102
        items = self._slice()
        self._entries(self._stack[-1], items)

    def dict_of_slice(self) -> None:  # noqa: D102
        items = self._slice()
        made = Entries()
        self._entries(made, items)
        self._stack.append(made)

    def other_of_slice(self) -> None:  # noqa: D102
        self._slice()
        self._stack.append(OTHER)

    def tuple_of_slice(self) -> None:  # noqa: D102
        items = self._slice()
        self._stack.append(tuple(items))

    def tuple_of(self, count: int) -> None:  # noqa: D102
        items = self._stack[-count:]
        if len(items) < count:
            raise IndexError
        self._stack[-count:] = [tuple(items)]

    def get(self, index: int) -> None:  # noqa: D102
        self._stack.append(self._memo[index])

    def put(self, index: int) -> None:  # noqa: D102
        self._memo[index] = self._stack[-1]

    def proto(self) -> None:  # noqa: D102
        number = self._size(1)
        if number > 5:
            raise ValueError(f"there is no protocol {number}")
        self.protocol = number
        self.highest_protocol = max(self.highest_protocol, number)

    def frame(self) -> None:  # noqa: D102
        size = self._size(8)
        if self._frame_end is not None and self.stream.offset < self._frame_end:
            self._odd("a frame begins inside a frame")
        self._frame_end = self.stream.offset + size

    def buffer(self) -> None:  # noqa: D102
        raise ValueError("it needs buffers from outside the file")


Handler = Callable[[PickleTrace], None]
_M = PickleTrace
_TABLE: dict[bytes, Handler] = {
    b"(": _M.mark, b".": _M.stop, b"0": _M.pop, b"1": lambda m: (m._slice(), None)[1], b"2": _M.dup,
    b"F": _M.line_other, b"I": _M.line_number, b"J": lambda m: m.integer(4), b"K": lambda m: m.integer(1),
    b"L": _M.line_other, b"M": lambda m: m.integer(2), b"N": lambda m: m.push(lambda: None), b"P": _M.persid_line,
    b"Q": _M.persid, b"R": _M.reduce, b"S": _M.line_string, b"T": _M.long_string, b"U": _M.short_string,
    b"V": _M.line_unicode, b"X": lambda m: m._text(m._size(4)), b"a": _M.append, b"b": _M.build, b"c": _M.global_line,
    b"d": _M.dict_of_slice, b"}": lambda m: m.push(Entries), b"e": _M.appends, b"g": lambda m: m.get(m._index()),
    b"h": lambda m: m.get(m._size(1)), b"i": _M.inst, b"j": lambda m: m.get(m._size(4)), b"l": _M.other_of_slice,
    b"]": lambda m: m.push(_Other), b"o": _M.obj, b"p": lambda m: m.put(m._index()), b"q": lambda m: m.put(m._size(1)),
    b"r": lambda m: m.put(m._size(4)), b"s": _M.set_item, b"t": _M.tuple_of_slice, b")": lambda m: m.push(tuple),
    b"u": _M.set_items, b"G": lambda m: m.fixed(8), b"\x80": _M.proto, b"\x81": _M.new_object,
    b"\x82": lambda m: m.extension(1), b"\x83": lambda m: m.extension(2), b"\x84": lambda m: m.extension(4),
    b"\x85": lambda m: m.tuple_of(1), b"\x86": lambda m: m.tuple_of(2), b"\x87": lambda m: m.tuple_of(3),
    b"\x88": lambda m: m.push(lambda: True), b"\x89": lambda m: m.push(bool), b"\x8a": lambda m: m.long(1),
    b"\x8b": lambda m: m.long(4), b"B": lambda m: m._bytes(m._size(4)), b"C": lambda m: m._bytes(m._size(1)),
    b"\x8c": lambda m: m._text(m._size(1)), b"\x8d": lambda m: m._text(m._size(8)),
    b"\x8e": lambda m: m._bytes(m._size(8)), b"\x8f": lambda m: m.push(_Other), b"\x90": _M.appends,
    b"\x91": _M.other_of_slice, b"\x92": _M.new_object_ex, b"\x93": _M.stack_global,
    b"\x94": lambda m: m.put(len(m._memo)), b"\x95": _M.frame, b"\x96": lambda m: m._bytes(m._size(8)),
    b"\x97": _M.buffer, b"\x98": _M.buffer,
}  # fmt: skip
_HANDLERS: list[Handler | None] = [_TABLE.get(bytes([code])) for code in range(256)]
