"""Read a GGUF file's header: metadata, tensors, quantisation. Every length is checked before it is read.

Source of the layout: the GGUF specification, versions 1 to 3, in ggml's documentation.
"""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from analyzer.draft import Draft, clean, cut_short
from analyzer.formats import Seen
from schemas.errors import LimitExceeded, ModelFailed, Unsupported

MAX_KEYS = 20_000
MAX_TENSORS = 200_000
MAX_KEY_BYTES = 65_535
MAX_TEXT_BYTES = 16 << 20
MAX_ITEMS = 10_000_000
MAX_AXES = 8
_MAX_DEPTH = 4
_KEPT_ITEMS = 64
"""Items of an array that are kept; vocabularies are walked over."""
_ALIGNMENT = 32
_STRING, _ARRAY = 8, 9
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Metadata type to struct's letter."""

_SUPER = 256
BLOCKS: dict[int, tuple[str, int, int]] = {
    0: ("float32", 1, 4), 1: ("float16", 1, 2), 2: ("q4_0", 32, 18), 3: ("q4_1", 32, 20), 6: ("q5_0", 32, 22),
    7: ("q5_1", 32, 24), 8: ("q8_0", 32, 34), 9: ("q8_1", 32, 36), 10: ("q2_k", _SUPER, 84), 11: ("q3_k", _SUPER, 110),
    12: ("q4_k", _SUPER, 144), 13: ("q5_k", _SUPER, 176), 14: ("q6_k", _SUPER, 210), 15: ("q8_k", _SUPER, 292),
    16: ("iq2_xxs", _SUPER, 66), 17: ("iq2_xs", _SUPER, 74), 18: ("iq3_xxs", _SUPER, 98), 19: ("iq1_s", _SUPER, 50),
    20: ("iq4_nl", 32, 18), 21: ("iq3_s", _SUPER, 110), 22: ("iq2_s", _SUPER, 82), 23: ("iq4_xs", _SUPER, 136),
    24: ("int8", 1, 1), 25: ("int16", 1, 2), 26: ("int32", 1, 4), 27: ("int64", 1, 8), 28: ("float64", 1, 8),
    29: ("iq1_m", _SUPER, 56), 30: ("bfloat16", 1, 2), 34: ("tq1_0", _SUPER, 54), 35: ("tq2_0", _SUPER, 66),
    39: ("mxfp4", 32, 17),
}  # fmt: skip
"""ggml's tensor type to its name, the values in a block and the block's bytes."""
_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4",
}  # fmt: skip
"""llama.cpp's ``general.file_type`` to the name that its tools print."""
_EMBEDDERS = ("bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "t5encoder", "modern-bert")
_NOT_ALONE = {"clip": "the image part of a multimodal model", "adapter": "an adapter to a model"}


@dataclass
class GgufTensor:
    """One tensor: its axes, ggml's type, and where its bytes start behind the header."""

    name: str
    axes: tuple[int, ...]
    kind: int
    offset: int

    @property
    def count(self) -> int:
        """Number of values."""
        product = 1
        for axis in self.axes:
            product *= axis
        return product

    @property
    def size_bytes(self) -> int | None:
        """Bytes of the values; None for a type that is not known here."""
        if self.kind not in BLOCKS:
            return None
        _, values, nbytes = BLOCKS[self.kind]
        return -(-self.count // values) * nbytes


@dataclass
class GgufHeader:
    """A whole header. Arrays in ``metadata`` are cut after a few items."""

    version: int
    metadata: dict[str, Any] = field(default_factory=dict)
    tensors: list[GgufTensor] = field(default_factory=list)
    data_start: int = 0

    def text(self, key: str) -> str | None:
        """Return a string of the metadata."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) and value else None

    def number(self, key: str) -> int | None:
        """Return an integer of the metadata that is not negative."""
        value = self.metadata.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


class _Reader:
    """Reads little-endian values and never past the end of the file."""

    def __init__(self, handle: IO[bytes], size: int) -> None:
        self.handle, self.size, self.wide = handle, size, True

    def take(self, count: int, what: str) -> bytes:
        if count > self.size - self.handle.tell():
            raise cut_short("GGUF file", f"it ends inside {what}")
        return self.handle.read(count)

    def skip(self, count: int, what: str) -> None:
        if count > self.size - self.handle.tell():
            raise cut_short("GGUF file", f"it ends inside {what}")
        self.handle.seek(count, 1)

    def number(self, letter: str, what: str) -> Any:
        return struct.unpack("<" + letter, self.take(struct.calcsize("<" + letter), what))[0]

    def length(self, what: str) -> int:
        return int(self.number("Q" if self.wide else "I", what))

    def text(self, what: str, most: int) -> str:
        size = self.length(what)
        if size > self.size - self.handle.tell():
            raise cut_short("GGUF file", f"it ends inside {what}")
        _within(size, most, f"{what} of {size:,} bytes")
        return self.take(size, what).decode("utf-8", "replace")

    def value(self, kind: int, what: str, depth: int = 0) -> Any:
        if kind == _STRING:
            return self.text(what, MAX_TEXT_BYTES)
        if kind == _ARRAY:
            return self.array(what, depth)
        if kind not in _NUMBERS:
            raise ModelFailed(
                f"The GGUF header has a value of type {kind}, which the format does not define, at {clean(what, 80)}.",
                hint="The file is damaged; copy it again.",
            )
        return self.number(_NUMBERS[kind], what)

    def array(self, what: str, depth: int) -> list[Any]:
        kind, count = self.number("I", what), self.length(what)
        _within(count, MAX_ITEMS, f"{what} with {count:,} items")
        _within(depth + 1, _MAX_DEPTH, f"{what} nested {depth + 1} deep")
        if kind in _NUMBERS:
            kept = [self.value(kind, what) for _ in range(min(count, _KEPT_ITEMS))]
            self.skip((count - len(kept)) * struct.calcsize("<" + _NUMBERS[kind]), what)
            return kept
        kept = []
        for place in range(count):
            item = self.value(kind, what, depth + 1)
            if place < _KEPT_ITEMS:
                kept.append(item)
        return kept


def _within(actual: int, limit: int, what: str) -> None:
    if actual > limit:
        raise LimitExceeded(
            f"The GGUF header has {what}, far more than any model's.",
            hint="The file is damaged or was made to harm; copy it again from its source.",
            limit=limit,
            actual=actual,
        )


def read_header(path: Path) -> GgufHeader:
    """Return the header of the GGUF file at ``path``; the tensors' bytes are not read.

    Raises ModelFailed (truncated, damaged), LimitExceeded, Unsupported (big-endian or older than GGUF).
    """
    size = path.stat().st_size
    with path.open("rb") as handle:
        reader = _Reader(handle, size)
        if reader.take(4, "the magic bytes") != b"GGUF":
            raise Unsupported(
                "This file is in a format of llama.cpp from before GGUF, which it does not read any more.",
                hint="Convert the model again with a current llama.cpp: `convert_hf_to_gguf.py FOLDER`.",
            )
        version = int(reader.number("I", "the version"))
        if version > 0xFFFF:
            raise Unsupported(
                "This GGUF file is big-endian; the machines that it would be served on here are not.",
                hint="Convert it again without --bigendian, or with `gguf_convert_endian.py FILE little`.",
            )
        if version not in (1, 2, 3):
            raise Unsupported(
                f"This GGUF file has version {version}; versions 1 to 3 are known.",
                hint="Convert the model again with a released llama.cpp.",
            )
        reader.wide = version > 1
        header = GgufHeader(version)
        tensors, keys = reader.length("the number of tensors"), reader.length("the number of keys")
        _within(tensors, MAX_TENSORS, f"{tensors:,} tensors")
        _within(keys, MAX_KEYS, f"{keys:,} keys")
        for _ in range(keys):
            key = reader.text("a key", MAX_KEY_BYTES)
            header.metadata[key] = reader.value(int(reader.number("I", key)), key)
        for _ in range(tensors):
            header.tensors.append(_tensor(reader))
        alignment = header.number("general.alignment") or _ALIGNMENT
        header.data_start = -(-handle.tell() // alignment) * alignment
    return header


def _tensor(reader: _Reader) -> GgufTensor:
    name = reader.text("a tensor's name", MAX_KEY_BYTES)
    axes = int(reader.number("I", name))
    _within(axes, MAX_AXES, f"tensor {clean(name, 80)!r} with {axes} axes")
    shape = tuple(reader.length(name) for _ in range(axes))
    return GgufTensor(name, shape, int(reader.number("I", name)), int(reader.number("Q", name)))


def read_gguf(draft: Draft, seen: Seen) -> None:
    """Fill ``draft`` from the file's header and refuse what cannot be served alone."""
    header = read_header(draft.file)
    architecture, kept = header.text("general.architecture") or "", header.number("general.file_type")
    draft.know(
        framework="llama.cpp",
        framework_version=f"GGUF {header.version}",
        architecture=architecture,
        license=header.text("general.license"),
        tokenizer=header.text("tokenizer.ggml.model"),
        context_length=header.number(f"{architecture}.context_length"),
        quantisation=_FILE_TYPES.get(-1 if kept is None else kept) or _commonest(header),
        task="feature-extraction" if architecture in _EMBEDDERS else "text-generation",
    )
    if name := header.text("general.name"):
        draft.note(f"The file calls its model {clean(name, 120)!r}.")
    _whole(draft, header)
    draft.parameters(
        (BLOCKS[t.kind][0] if t.kind in BLOCKS else f"ggml-{t.kind}", t.count, t.size_bytes or 0)
        for t in header.tensors
    )
    if header.text("tokenizer.chat_template"):
        draft.note("It carries a chat template, so llama.cpp's chat endpoint works with it.")
    if not architecture or not header.tensors:
        raise ModelFailed(
            f"This GGUF file has no {'tensors' if architecture else 'general.architecture'}, so no server can load it.",
            hint="It may hold a vocabulary only; convert the whole model.",
        )
    kind = header.text("general.type") or ""
    part = _NOT_ALONE.get(architecture) or _NOT_ALONE.get(kind)
    if part:
        raise Unsupported(
            f"This GGUF file is {part}, which is served beside its language model only.",
            hint="Drop the language model's own GGUF file.",
        )
    parts = header.number("split.count") or 1
    if parts > 1:
        raise Unsupported(
            f"This is one of {parts} parts of a GGUF model.",
            hint="Join them and drop the whole: `llama-gguf-split --merge FIRST-PART model.gguf`.",
        )


def _commonest(header: GgufHeader) -> str | None:
    counts: Counter[str] = Counter()
    for tensor in header.tensors:
        if tensor.kind in BLOCKS:
            counts[BLOCKS[tensor.kind][0].upper()] += tensor.count
    return counts.most_common(1)[0][0] if counts else None


def _whole(draft: Draft, header: GgufHeader) -> None:
    """Raise ModelFailed when a tensor's bytes lie beyond the end of the file."""
    size = draft.file.stat().st_size
    for tensor in header.tensors:
        end = header.data_start + tensor.offset + (tensor.size_bytes or 0)
        if end > size:
            raise cut_short("GGUF file", f"tensor {clean(tensor.name, 80)!r} ends at byte {end:,} of {size:,}")
    unknown = sorted({tensor.kind for tensor in header.tensors} - BLOCKS.keys())
    if unknown:
        draft.note(f"It has tensors of ggml's type {unknown[0]}, which is not known here; llama.cpp may know it.")
