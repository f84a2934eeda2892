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
from typing import Any

from analyzer.joblib_array import array_bytes
from analyzer.scan_stream import Budget, ScanStream
from analyzer.traced_values import OTHER, Blob, Entries, Global, Instance, Other

KEEP_BYTES = 1 << 20
"""Longer constants are kept up to here, to tell whether a pickle or an archive begins in them."""
MAX_DISTINCT = 20_000
MAX_ENTRIES = 512
MAX_NESTED = 2_000
_DIGITS = re.compile(rb"[0-9]{1,18}\Z")


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
        self.calls = 0
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
        self.calls += 1
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
                elif isinstance(key, Instance | Other):
                    # Such a key may equal a string that is recorded already.
                    target.whole = target.whole and not isinstance(key, Instance)

    # Opcodes

    def _op_mark(self) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def _op_stop(self) -> None:
        self.value = self._stack.pop()
        self.complete = True

    def _op_pop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._slice()

    def _op_dup(self) -> None:
        self._stack.append(self._stack[-1])

    def _op_line_number(self) -> None:
        line = self.stream.line(1 << 16)
        try:
            self._stack.append(int(line, 0))
        except ValueError:
            self._stack.append(OTHER)

    def _op_line_other(self) -> None:
        self.stream.line(1 << 20)
        self._stack.append(OTHER)

    def _op_line_string(self) -> None:
        line = self.stream.line()
        if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
            raise ValueError("a string has no quotes")
        raw = codecs.escape_decode(line[1:-1])[0]
        self._old_string(bytes(raw))

    def _old_string(self, raw: bytes) -> None:
        # What a Python 2 string becomes depends on the loader's encoding, unless it is ASCII.
        self._stack.append(raw.decode("ascii") if raw.isascii() else OTHER)
        self._nest(Blob(raw, len(raw), self._at))

    def _op_short_string(self) -> None:
        self._old_string(self.stream.read(self._size(1)))

    def _op_long_string(self) -> None:
        size = self._size(4, signed=True)
        if size > KEEP_BYTES:
            self.stream.skip(size)
            self._stack.append(OTHER)
        else:
            self._old_string(self.stream.read(size))

    def _op_line_unicode(self) -> None:
        text = str(self.stream.line(), "raw-unicode-escape")
        self._stack.append(text)
        if len(text) > 8 and text[0] in "\x80P\x1f":
            self._nest(Blob(text.encode("latin-1", "replace"), len(text), self._at))

    def _op_fixed(self, width: int) -> None:
        self.stream.read(width)
        self._stack.append(OTHER)

    def _op_integer(self, width: int) -> None:
        self._stack.append(int.from_bytes(self.stream.read(width), "little", signed=width == 4))

    def _op_long(self, width: int) -> None:
        size = self._size(width, signed=width == 4)
        if size > 64:
            self.stream.skip(size)
            self._stack.append(OTHER)
        else:
            self._stack.append(int.from_bytes(self.stream.read(size), "little", signed=True))

    def _op_push(self, value: Callable[[], Any]) -> None:
        self._stack.append(value())

    def _op_persid_line(self) -> None:
        self.stream.line(1 << 16)
        self.persistent = True
        self._stack.append(Instance(None))

    def _op_persid(self) -> None:
        key = self._stack.pop()
        self.persistent = True
        # torch's legacy format keeps a module's class so, beside its source, and gives back the class itself.
        is_class = isinstance(key, tuple) and len(key) > 1 and key[0] == "module" and isinstance(key[1], Global)
        self._stack.append(key[1] if is_class else Instance(None))

    def _op_global_line(self) -> None:
        module = self.stream.line(1 << 16).decode("utf-8")
        name = self.stream.line(1 << 16).decode("utf-8")
        self._stack.append(self._ask(module, name))

    def _op_stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if isinstance(name, str) and isinstance(module, str):
            self._stack.append(self._ask(module, name))
        else:
            self._odd("it computes the name of a global")
            self._stack.append(Instance(None))

    def _op_extension(self, width: int) -> None:
        self.stream.read(width)
        self._odd("it asks for a global by its number in the extension registry")
        self._stack.append(Instance(None))

    def _op_reduce(self) -> None:
        args, target = self._stack.pop(), self._stack.pop()
        self._stack.append(self._call(target, args))

    def _op_new_object(self) -> None:
        args, target = self._stack.pop(), self._stack.pop()
        self._stack.append(self._call(target, args))

    def _op_new_object_ex(self) -> None:
        self._stack.pop()
        self._op_new_object()

    def _op_obj(self) -> None:
        args = self._slice()
        target = args.pop(0)
        self._stack.append(self._call(target, tuple(args)))

    def _op_inst(self) -> None:
        module = self.stream.line(1 << 16).decode("ascii")
        name = self.stream.line(1 << 16).decode("ascii")
        target = self._ask(module, name)
        self._stack.append(self._call(target, tuple(self._slice())))

    def _op_build(self) -> None:
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

    def _op_append(self) -> None:
        self._stack.pop()
        if isinstance(self._stack[-1], Global):
            self._odd("it writes into a global")

    def _op_appends(self) -> None:
        self._slice()
        if isinstance(self._stack[-1], Global):
            self._odd("it writes into a global")

    def _op_set_item(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._entries(self._stack[-1], [key, value])

    def _op_set_items(self) -> None:
        items = self._slice()
        self._entries(self._stack[-1], items)

    def _op_dict_of_slice(self) -> None:
        items = self._slice()
        made = Entries()
        self._entries(made, items)
        self._stack.append(made)

    def _op_other_of_slice(self) -> None:
        self._slice()
        self._stack.append(OTHER)

    def _op_tuple_of_slice(self) -> None:
        items = self._slice()
        self._stack.append(tuple(items))

    def _op_tuple_of(self, count: int) -> None:
        items = self._stack[-count:]
        if len(items) < count:
            raise IndexError
        self._stack[-count:] = [tuple(items)]

    def _op_get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def _op_put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _op_proto(self) -> None:
        number = self._size(1)
        if number > 5:
            raise ValueError(f"there is no protocol {number}")
        self.protocol = number
        self.highest_protocol = max(self.highest_protocol, number)

    def _op_frame(self) -> None:
        size = self._size(8)
        if self._frame_end is not None and self.stream.offset < self._frame_end:
            self._odd("a frame begins inside a frame")
        self._frame_end = self.stream.offset + size

    def _op_buffer(self) -> None:
        raise ValueError("it needs buffers from outside the file")


Handler = Callable[[PickleTrace], None]
_M = PickleTrace
_TABLE: dict[bytes, Handler] = {
    b"(": _M._op_mark, b".": _M._op_stop, b"0": _M._op_pop, b"1": lambda m: (m._slice(), None)[1], b"2": _M._op_dup,
    b"F": _M._op_line_other, b"I": _M._op_line_number, b"J": lambda m: m._op_integer(4),
    b"K": lambda m: m._op_integer(1), b"L": _M._op_line_other, b"M": lambda m: m._op_integer(2),
    b"N": lambda m: m._op_push(lambda: None), b"P": _M._op_persid_line, b"Q": _M._op_persid, b"R": _M._op_reduce,
    b"S": _M._op_line_string, b"T": _M._op_long_string, b"U": _M._op_short_string, b"V": _M._op_line_unicode,
    b"X": lambda m: m._text(m._size(4)), b"a": _M._op_append, b"b": _M._op_build, b"c": _M._op_global_line,
    b"d": _M._op_dict_of_slice, b"}": lambda m: m._op_push(Entries), b"e": _M._op_appends,
    b"g": lambda m: m._op_get(m._index()), b"h": lambda m: m._op_get(m._size(1)), b"i": _M._op_inst,
    b"j": lambda m: m._op_get(m._size(4)), b"l": _M._op_other_of_slice, b"]": lambda m: m._op_push(Other),
    b"o": _M._op_obj, b"p": lambda m: m._op_put(m._index()), b"q": lambda m: m._op_put(m._size(1)),
    b"r": lambda m: m._op_put(m._size(4)), b"s": _M._op_set_item, b"t": _M._op_tuple_of_slice,
    b")": lambda m: m._op_push(tuple), b"u": _M._op_set_items, b"G": lambda m: m._op_fixed(8), b"\x80": _M._op_proto,
    b"\x81": _M._op_new_object, b"\x82": lambda m: m._op_extension(1), b"\x83": lambda m: m._op_extension(2),
    b"\x84": lambda m: m._op_extension(4), b"\x85": lambda m: m._op_tuple_of(1), b"\x86": lambda m: m._op_tuple_of(2),
    b"\x87": lambda m: m._op_tuple_of(3), b"\x88": lambda m: m._op_push(lambda: True),
    b"\x89": lambda m: m._op_push(bool), b"\x8a": lambda m: m._op_long(1), b"\x8b": lambda m: m._op_long(4),
    b"B": lambda m: m._bytes(m._size(4)), b"C": lambda m: m._bytes(m._size(1)),
    b"\x8c": lambda m: m._text(m._size(1)), b"\x8d": lambda m: m._text(m._size(8)),
    b"\x8e": lambda m: m._bytes(m._size(8)), b"\x8f": lambda m: m._op_push(Other), b"\x90": _M._op_appends,
    b"\x91": _M._op_other_of_slice, b"\x92": _M._op_new_object_ex, b"\x93": _M._op_stack_global,
    b"\x94": lambda m: m._op_put(len(m._memo)), b"\x95": _M._op_frame, b"\x96": lambda m: m._bytes(m._size(8)),
    b"\x97": _M._op_buffer, b"\x98": _M._op_buffer,
}  # fmt: skip
_HANDLERS: list[Handler | None] = [_TABLE.get(bytes([code])) for code in range(256)]
