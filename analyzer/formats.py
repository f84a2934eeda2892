"""Tell what a file is by its content alone; its name is never looked at."""

from __future__ import annotations

import mmap
import re
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from analyzer import flatbuffer, onnx_wire
from analyzer.byte_source import codec_of, head_of, open_bytes
from analyzer.pickle_machine import TORCH_MAGIC, BrokenPickle, read_pickle
from analyzer.zip_members import NoCentralDirectory, ZipMembers, first_member, open_zip
from schemas.descriptor import Format
from schemas.errors import LimitExceeded, ModelFailed

HEAD_BYTES = 4096
_SNIFF_OPCODES = 20_000


@dataclass(frozen=True)
class Seen:
    """A file's format, and the kind within it that readers and refusals tell apart."""

    format: Format
    kind: str
    detail: str = ""


_MAGIC: tuple[tuple[int, bytes, Format, str], ...] = (
    (0, b"\x89HDF\r\n\x1a\n", Format.KERAS, "keras-h5"),
    (4, b"TFL3", Format.TFLITE, "tflite"),
    (0, b"ML\xefR", Format.JAX_EXPORT, "stablehlo"),
    (0, b"GGUF", Format.GGUF, "gguf"),
    (0, b"lmgg", Format.GGUF, "gguf"),
    (0, b"tjgg", Format.GGUF, "gguf"),
    (0, b"CBM1", Format.CATBOOST, "catboost"),
    (0, b"\x93NUMPY", Format.NUMPY, "npy"),
    (0, b"tree\nversion=v", Format.LIGHTGBM, "lightgbm"),
    (4, b"ET12", Format.UNKNOWN, "executorch"),
    (0, b"ftrt", Format.UNKNOWN, "tensorrt-engine"),
    (0, b"vtrt", Format.UNKNOWN, "tensorrt-engine"),
    (0, b"7z\xbc\xaf\x27\x1c", Format.ARCHIVE, "7z"),
    (0, b"\x28\xb5\x2f\xfd", Format.ARCHIVE, "zstd"),
    (0, b"\x04\x22\x4d\x18", Format.ARCHIVE, "lz4"),
    (0, b"Rar!\x1a\x07", Format.ARCHIVE, "rar"),
    (0, b"ZF0x", Format.PICKLE, "old-joblib"),
    (257, b"ustar", Format.ARCHIVE, "tar"),
)
_TEXT_HEADS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs.github.com/spec/", "lfs-pointer"),
    (b"<!doctype html", "html"),
    (b"<html", "html"),
    (b"<?xml", "xml"),
)
_PMML = re.compile(rb"<PMML[\s>]")
_OPENVINO = re.compile(
    rb"(<\?xml[^>]{0,200}\?>\s*)?(<!--.{0,1000}?-->\s*)*<net\s[^>]{0,1000}?\bversion=[\"']\d+[\"'][^>]{0,1000}>\s*"
    rb"(<!--.{0,1000}?-->\s*)*<(meta_data|layers|pre-process|statistics)\b",
    re.S,
)
"""The root of OpenVINO's IR. A document type before it, which no OpenVINO writes, makes it any other XML."""
_XGBOOST_OBJECTIVE = re.compile(rb"(reg|binary|multi|rank|count|survival):[a-z]+.{0,64}?(gbtree|gblinear|dart)", re.S)
_PYTHON = re.compile(rb"^(import \w|from [\w.]+ import |def \w+\(|class \w+.*:)", re.M)
_GRAPH_DEF = frozenset({(1, onnx_wire.BYTES), (2, onnx_wire.BYTES), (3, onnx_wire.VARINT), (4, onnx_wire.BYTES)})
_NODE_NAME = re.compile(rb"[A-Za-z0-9._][\w./>-]*\Z")
_NAME_BYTES = 4096
_IDENTIFIERS = re.compile(r"[A-Za-z_][\w.]*\Z")


def recognise(path: Path) -> Seen:
    """Return what the file at ``path`` is. Raises ModelFailed for an archive too broken or too big to list."""
    size = path.stat().st_size
    if size == 0:
        return Seen(Format.EMPTY, "empty")
    with path.open("rb") as handle:
        head = handle.read(HEAD_BYTES)
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return _zip(path, head)
    for offset, magic, format_, kind in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return Seen(format_, kind)
    if codec_of(head) is not None:
        return _compressed(path, head)
    # Before pickles: a header of 640 bytes begins with 80 02, as a pickle of protocol 2 does; no pickle goes on so.
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= 1 << 30:
        return Seen(Format.SAFETENSORS, "safetensors")
    if head[:1] == b"\x80" and len(head) > 1 and head[1] <= 5:
        return _pickle(path)
    return _without_magic(path, head)


def _without_magic(path: Path, head: bytes) -> Seen:
    if (head[:1] == b"{" and re.match(rb'\{\s*"(learner|version)"\s*:', head) and b'"learner' in head) or (
        head[:2] == b"{L" and head[10:17] == b"learner"
    ):
        return Seen(Format.XGBOOST, "xgboost")
    if head[:4] == b"binf" or (b"\0" in head[:64] and _XGBOOST_OBJECTIVE.search(head[:1024])):
        return Seen(Format.XGBOOST, "xgboost-binary")
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if _OPENVINO.match(start):
        return Seen(Format.OPENVINO, "openvino")
    if start[:1] == b"<" and _PMML.search(start):
        return Seen(Format.TEXT, "pmml")
    for prefix, kind in _TEXT_HEADS:
        if start[: len(prefix)].lower() == prefix:
            return Seen(Format.TEXT, kind)
    onnx = onnx_wire.sight(path)
    if onnx is not None:
        return Seen(Format.ONNX, "onnx")
    if _saved_model(path):
        return Seen(Format.SAVED_MODEL, "saved-model-file")
    if (message := _other_message(path)) is not None:
        return Seen(Format.UNKNOWN, message)
    if _jax_export(path):
        return Seen(Format.JAX_EXPORT, "jax-export")
    if _old_pickle(path, head):
        return Seen(Format.PICKLE, "pickle")
    if _is_text(head):
        if b"module @" in head and (b"stablehlo" in head or b"mhlo." in head):
            return Seen(Format.JAX_EXPORT, "stablehlo")
        if start[:1] in (b"{", b"["):
            return Seen(Format.TEXT, "json")
        return Seen(Format.TEXT, "python" if _PYTHON.search(head) else "text")
    return Seen(Format.UNKNOWN, "unknown", head[:8].hex(" "))


def _zip(path: Path, head: bytes) -> Seen:
    try:
        with open_zip(path) as members:
            return kind_of_zip(members)
    except NoCentralDirectory:
        first = first_member(head)
        inside = first.partition("/")[2]
        if inside.startswith(
            ("data.pkl", "data/", "byteorder", "version", ".format_version", ".data/", "constants.pkl")
        ):
            exported = inside.startswith(("data/weights/", "data/constants/"))
            return Seen(
                Format.EXPORTED_PROGRAM if exported else Format.TORCH_STATE_DICT, "cut-zip", "PyTorch zip archive"
            )
        return Seen(Format.ARCHIVE, "cut-zip", "zip archive")


def kind_of_zip(members: ZipMembers) -> Seen:
    """Return what a readable zip holds, told by its members."""
    names = members.names
    plain = set(names)
    if "schema.json" in plain and not any(name.endswith("/data.pkl") for name in names):
        return Seen(Format.SKOPS, "skops")
    if "config.json" in plain and any(name.endswith(".weights.h5") for name in names):
        return Seen(Format.KERAS, "keras-zip")
    if "serialized_exported_program.json" in plain or "serialized_exported_program.pt" in plain:
        return Seen(Format.EXPORTED_PROGRAM, "exported-program-old")
    roots = {name.partition("/")[0] for name in names}
    for root in roots if len(roots) == 1 else ():
        if f"{root}/archive_format" in plain or any(name.startswith(f"{root}/models/") for name in names):
            if any(name.startswith(f"{root}/models/") and name.endswith(".json") for name in names):
                return Seen(Format.EXPORTED_PROGRAM, "exported-program", root)
            return Seen(Format.EXPORTED_PROGRAM, "aot-inductor", root)
        if f"{root}/data.pkl" in plain:
            if f"{root}/constants.pkl" in plain and any(name.startswith(f"{root}/code/") for name in names):
                return Seen(Format.TORCHSCRIPT, "torchscript", root)
            return Seen(Format.TORCH_STATE_DICT, "torch-zip", root)
    if "MAR-INF/MANIFEST.json" in plain:
        return Seen(Format.ARCHIVE, "torchserve")
    if names and all(name.endswith(".npy") for name in names):
        return Seen(Format.NUMPY, "npz")
    return Seen(Format.ARCHIVE, "zip", ", ".join(names[:5]))


def _compressed(path: Path, head: bytes) -> Seen:
    codec = codec_of(head) or ""
    inner = head_of(path, HEAD_BYTES)
    if inner[257:262] == b"ustar":
        return Seen(Format.ARCHIVE, "tar", codec)
    if (inner[:1] == b"\x80" and len(inner) > 1 and inner[1] <= 5) or _old_pickle(path, inner):
        return _pickle(path)
    if not inner and codec in ("zlib", "lzma"):  # two or three bytes are weak evidence
        return _without_magic(path, head)
    if not inner:
        return Seen(Format.ARCHIVE, "cut-compressed", f"{codec}-compressed file")
    return Seen(Format.ARCHIVE, codec)


def _pickle(path: Path) -> Seen:
    try:
        with open_bytes(path) as source:
            if read_pickle(source, max_opcodes=8).root == TORCH_MAGIC:
                return Seen(Format.TORCH_STATE_DICT, "torch-legacy")
    except (EOFError, BrokenPickle):
        pass
    return Seen(Format.PICKLE, "pickle")


def _old_pickle(path: Path, head: bytes) -> bool:
    """Whether the bytes are a pickle of protocol 0 or 1, which has no magic: it must parse and import something."""
    if head[:1] not in (b"c", b"(", b"]", b"}", b"i", b"d", b"l", b")"):
        return False
    try:
        with open_bytes(path) as source:
            reading = read_pickle(source, max_opcodes=_SNIFF_OPCODES)
    except (EOFError, ModelFailed, LimitExceeded):
        return bool(re.match(rb"c[A-Za-z_][\w.]*\n[A-Za-z_]\w*\n", head))
    names = [part for found in reading.globals for part in (found.module, found.name)]
    if names:
        return all(_IDENTIFIERS.match(name) for name in names)
    return reading.complete and reading.offset >= path.stat().st_size - 1 and reading.opcodes > 2


def _saved_model(path: Path) -> bool:
    """Whether the file is TensorFlow's SavedModel message: schema version 1, then meta graphs."""
    seen = [(item.number, item.wire) for item in _first_fields(path)]
    return len(seen) >= 2 and seen[0] == (1, onnx_wire.VARINT) and set(seen[1:]) == {(2, onnx_wire.BYTES)}


def _other_message(path: Path) -> str | None:
    """Return which protobuf message that is never converted the file is: TensorFlow's GraphDef, Core ML's Model."""
    seen = _first_fields(path)
    kinds = {(item.number, item.wire) for item in seen}
    if seen and kinds <= _GRAPH_DEF and seen[0].number == 1 and _is_graph_node(path, seen[0]):
        return "graph-def"
    # specificationVersion, a description, and the model by its type, which is numbered from 200 on.
    if kinds >= {(1, onnx_wire.VARINT), (2, onnx_wire.BYTES)} and any(200 <= item.number < 4000 for item in seen):
        return "coreml"
    return None


def _is_graph_node(path: Path, place: onnx_wire.WireField) -> bool:
    """Whether the message there begins as a NodeDef does: with a name and the name of an operator."""
    with path.open("rb") as handle:
        try:
            inner = onnx_wire.fields(handle, place.start, place.start + place.length)
            for number in (1, 2):
                item = next(inner)
                handle.seek(item.start)
                text = handle.read(min(item.length, _NAME_BYTES))
                if (item.number, item.wire) != (number, onnx_wire.BYTES) or not _NODE_NAME.match(text):
                    return False
                handle.seek(item.start + item.length)
        except (onnx_wire.NotWire, StopIteration):
            return False
    return True


def _first_fields(path: Path, most: int = 5) -> list[onnx_wire.WireField]:
    """Return the first fields of the message that the file may be; [] where it is none."""
    with path.open("rb") as handle:
        try:
            return list(islice(onnx_wire.fields(handle, 0, path.stat().st_size), most))
        except onnx_wire.NotWire:
            return []


def _jax_export(path: Path) -> bool:
    """Whether the file is jax.export's flatbuffer: a table whose fourteenth field is MLIR bytecode."""
    if path.stat().st_size < 64:
        return False
    with path.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return flatbuffer.root(data).bytes_of(13, 4) == b"ML\xefR"
        except flatbuffer.NotFlatbuffer:
            return False


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:
            return False
        text = head[: error.start].decode("utf-8")
    return bool(text.strip()) and not any(ord(c) < 32 and c not in "\t\r\n\f\x1b" for c in text)
