"""OpenVINO IR: tensors, operators, parameters and work from the .xml; its .bin is only measured."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn
from xml.parsers import expat

from analyzer.draft import Draft, clean, cut_short
from analyzer.formats import Seen
from schemas.descriptor import DType, KnownBy, TensorSpec
from schemas.errors import LimitExceeded, ModelFailed, NeedsInput, Unsupported

VERSIONS = ("10", "11")
"""Versions of the IR that today's OpenVINO reads: 10 since 2020, 11 since 2022."""
MAX_XML_BYTES = 512 << 20
MAX_ELEMENTS = 20_000_000
MAX_DEPTH = 64
_CHUNK = 1 << 20
_DTYPES: dict[str, DType] = {
    "f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16", "i64": "int64", "i32": "int32",
    "i16": "int16", "i8": "int8", "u64": "uint64", "u32": "uint32", "u16": "uint16", "u8": "uint8",
    "boolean": "bool", "string": "string",
}  # fmt: skip
_PRECISIONS = {"fp64": "f64", "fp32": "f32", "fp16": "f16", "bool": "boolean"}
"""What ports call some element types."""
_STORED = {**_DTYPES, "i4": "int4", "u4": "uint4", "nf4": "nf4", "f8e4m3": "float8", "f8e5m2": "float8"}
_WEIGHTS = frozenset(_STORED) - {"i64", "i32", "u64", "u32", "boolean", "string"}
"""Element types of parameters; the others are shapes, axes and indices."""
_PASSES_WEIGHTS = frozenset({"Convert", "Multiply", "Subtract", "Reshape", "FakeQuantize", "Transpose"})
_UNCOUNTED = frozenset({"TensorIterator", "Loop", "If", "LSTMSequence", "GRUSequence", "RNNSequence", "LSTMCell",
                        "ConvolutionBackpropData", "GroupConvolutionBackpropData", "ScaledDotProductAttention",
                        "Einsum"})  # fmt: skip
"""Operators whose work is not in what is counted here."""
_OPSET = re.compile(r"opset\d{1,3}\Z")


@dataclass
class _Port:
    precision: str = ""
    names: str = ""
    dims: list[int] = field(default_factory=list)


@dataclass
class _Layer:
    id: str
    name: str
    type: str
    opset: str
    output_names: str
    data: dict[str, str] = field(default_factory=dict)
    inputs: list[_Port] = field(default_factory=list)
    outputs: dict[str, _Port] = field(default_factory=dict)


class _Reader:
    """Reads one .xml as a stream: no document type, no entity, no more elements or depth than a model has."""

    def __init__(self) -> None:
        self.layers: list[_Layer] = []
        self.edges: dict[str, list[tuple[str, str]]] = {}
        """Layer to the (layer, port) that feed it, in the order they are listed."""
        self.operators: Counter[str] = Counter()
        self.foreign: Counter[str] = Counter()
        self.version = ""
        self.producer = ""
        self._path: list[str] = []
        self._elements = 0
        self._layer: _Layer | None = None
        self._port: _Port | None = None
        self._text: list[str] | None = None

    def read(self, path: Path) -> None:
        parser = expat.ParserCreate("utf-8")
        parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = _refuse_entities
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters
        try:
            with path.open("rb") as handle:
                while chunk := handle.read(_CHUNK):
                    parser.Parse(chunk, False)
            parser.Parse(b"", True)
        except expat.ExpatError as error:
            if error.code in (expat.errors.codes[expat.errors.XML_ERROR_NO_ELEMENTS],
                              expat.errors.codes[expat.errors.XML_ERROR_UNCLOSED_TOKEN]):  # fmt: skip
                raise cut_short("OpenVINO model", "its .xml ends in the middle") from None
            raise ModelFailed(
                f"The .xml of this OpenVINO model is no XML: {expat.ErrorString(error.code)} in line {error.lineno}.",
                hint="Copy it again, or save the model again with openvino.save_model.",
            ) from None

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        self._elements += 1
        self._path.append(tag)
        if self._elements > MAX_ELEMENTS or len(self._path) > MAX_DEPTH:
            raise LimitExceeded("The .xml of this OpenVINO model is too large or too deep to be one.", limit=MAX_DEPTH)
        where = self._path
        if tag == "net" and len(where) == 1:
            self.version = attributes.get("version", "")
        elif tag == "info" and len(where) == 3 and attributes.get("name") == "OpenVINO Runtime":
            self.producer = attributes.get("value", "")
        elif tag == "layer":
            self._operator(attributes.get("type", ""), attributes.get("version", ""))
            if where == ["net", "layers", "layer"]:
                self._layer = _Layer(
                    attributes.get("id", ""), attributes.get("name", ""), attributes.get("type", ""),
                    attributes.get("version", ""), attributes.get("output_names", ""),
                )  # fmt: skip
        elif where[:2] == ["net", "edges"] and tag == "edge":
            source = (attributes.get("from-layer", ""), attributes.get("from-port", ""))
            self.edges.setdefault(attributes.get("to-layer", ""), []).append(source)
        elif self._layer is not None and len(where) == 4 and tag == "data":
            self._layer.data = attributes
        elif self._layer is not None and len(where) == 5 and tag == "port":
            self._port = _Port(attributes.get("precision", "").lower(), attributes.get("names", ""))
            if where[3] == "output":
                self._layer.outputs[attributes.get("id", "")] = self._port
            else:
                self._layer.inputs.append(self._port)
        elif self._port is not None and tag == "dim":
            self._text = []

    def _end(self, tag: str) -> None:
        if tag == "dim" and self._text is not None and self._port is not None:
            self._port.dims.append(_whole("".join(self._text)))
            self._text = None
        elif tag == "port":
            self._port = None
        elif tag == "layer" and len(self._path) == 3 and self._layer is not None:
            self.layers.append(self._layer)
            self._layer = None
        self._path.pop()

    def _characters(self, text: str) -> None:
        if self._text is not None and len(self._text) < 8:
            self._text.append(text)

    def _operator(self, kind: str, opset: str) -> None:
        if kind in ("Parameter", "Result", "Const"):
            return
        self.operators[kind if _OPSET.match(opset) else f"{opset}::{kind}"] += 1
        if not _OPSET.match(opset):
            self.foreign[f"{kind} ({opset or 'no operator set'})"] += 1


def _refuse_entities(*_: object) -> NoReturn:
    raise ModelFailed(
        "The .xml of this OpenVINO model declares a document type or entities, which no OpenVINO writes.",
        hint="Save the model again with openvino.save_model.",
    )


def read_openvino(draft: Draft, seen: Seen) -> None:
    """Describe the model from its .xml. Raises ModelFailed or NeedsInput when the model is broken or half of it."""
    path = draft.file
    draft.know(framework="openvino")
    if path.stat().st_size > MAX_XML_BYTES:
        raise LimitExceeded(
            f"The .xml of this OpenVINO model has more than {MAX_XML_BYTES >> 20} MiB.", limit=MAX_XML_BYTES
        )
    reader = _Reader()
    reader.read(path)
    if reader.version not in VERSIONS:
        raise Unsupported(
            f"This is OpenVINO IR of version {clean(reader.version, 20) or 'unknown'}; versions 10 and 11 are read.",
            hint="Convert the original model again with a current OpenVINO.",
        )
    draft.know(framework_version=f"IR {reader.version}", producer=reader.producer and f"OpenVINO {reader.producer}")
    draft.operators(dict(reader.operators))
    by_id = {layer.id: layer for layer in reader.layers}
    draft.know(inputs=tuple(_inputs(reader)), outputs=tuple(_outputs(reader, by_id)))
    constants = [layer for layer in reader.layers if layer.type == "Const"]
    _check_weights(draft, path, constants)
    draft.parameters(_parameter(layer) for layer in constants if layer.data.get("element_type") in _WEIGHTS)
    draft.know(matrix_bytes=_matrix_bytes(reader, by_id), flops=_flops(reader))
    if reader.foreign:
        names = ", ".join(f"{clean(name, 60)} {count} times" for name, count in reader.foreign.most_common(3))
        draft.note(f"It uses operators that are not in OpenVINO's own sets: {names}.")


def _check_weights(draft: Draft, path: Path, constants: list[_Layer]) -> None:
    needed = max((_whole(c.data.get("offset", "")) + _whole(c.data.get("size", "")) for c in constants), default=0)
    weights = path.with_suffix(".bin")
    if needed <= 0:
        return
    if not weights.is_file():
        raise NeedsInput(
            "Where are the weights of this OpenVINO model? An .xml is the graph alone.",
            hint=f"Drop a folder that holds the .xml and its weights, {clean(weights.name, 100)}, together.",
        )
    if weights.stat().st_size < needed:
        raise cut_short("OpenVINO model", f"its weights need {needed} bytes and the .bin has {weights.stat().st_size}")
    draft.know(files=(path.name, weights.name))


def _inputs(reader: _Reader) -> Iterator[TensorSpec]:
    for layer in reader.layers:
        if layer.type == "Parameter":
            port = next(iter(layer.outputs.values()), _Port())
            yield _spec(_first(port.names) or layer.name, layer.data.get("element_type", port.precision), port.dims)


def _outputs(reader: _Reader, by_id: dict[str, _Layer]) -> Iterator[TensorSpec]:
    for layer in reader.layers:
        if layer.type != "Result":
            continue
        source_id, source_port = next(iter(reader.edges.get(layer.id, ())), ("", ""))
        source = by_id.get(source_id)
        port = source.outputs.get(source_port, _Port()) if source is not None else _Port()
        name = _first(layer.output_names) or _first(port.names) or (source.name if source is not None else layer.name)
        dims = port.dims or (layer.inputs[0].dims if layer.inputs else [])
        yield _spec(name, port.precision, dims)


def _spec(name: str, kind: str, dims: list[int]) -> TensorSpec:
    kind = _PRECISIONS.get(kind, kind)
    if kind not in _DTYPES:
        raise Unsupported(
            f"Tensor {clean(name, 80)!r} of this OpenVINO model has the type {clean(kind, 20) or 'unknown'}.",
            hint="Convert the model so that it takes and gives ordinary numbers.",
        )
    name = clean(name)
    shape = tuple(dim if dim >= 0 else f"{name[:200]}_{at}" for at, dim in enumerate(dims[:16]))
    return TensorSpec(name=name, dtype=_DTYPES[kind], shape=shape, known_by=KnownBy.HEADER)


def _first(names: str) -> str:
    """Return the first, as OpenVINO sorts them, of the names in a list whose commas are escaped by a backslash."""
    parts = [part.replace("\\,", ",") for part in re.split(r"(?<!\\),", names)]
    return min((part for part in parts if part), default="")


def _parameter(layer: _Layer) -> tuple[str, int, int]:
    kind, size_bytes = layer.data.get("element_type", ""), max(_whole(layer.data.get("size", "")), 0)
    dims = [_whole(part) for part in layer.data.get("shape", "").split(",") if part.strip()]
    return _STORED[kind], math.prod(max(dim, 0) for dim in dims), size_bytes


def _matrix_bytes(reader: _Reader, by_id: dict[str, _Layer]) -> int:
    """Return the bytes of constants that matrix products multiply by, themselves or unpacked."""
    found: set[str] = set()
    for layer in reader.layers:
        if layer.type != "MatMul":
            continue
        for source, _ in reader.edges.get(layer.id, ()):
            for _ in range(6):
                node = by_id.get(source)
                if node is None or node.type not in _PASSES_WEIGHTS or source not in reader.edges:
                    break
                source = reader.edges[source][0][0]
            if source in by_id and by_id[source].type == "Const":
                found.add(source)
    return sum(max(_whole(by_id[name].data.get("size", "")), 0) for name in found)


def _flops(reader: _Reader) -> int | None:
    """Return operations of convolutions and matrix products for one row, two a multiply-add; None where unknown."""
    if _UNCOUNTED & set(reader.operators):
        return None
    total = 0
    for layer in reader.layers:
        if layer.type not in ("Convolution", "GroupConvolution", "MatMul"):
            continue
        made = next(iter(layer.outputs.values()), _Port()).dims
        if len(layer.inputs) < 2 or not made or not layer.inputs[0].dims:
            return None
        if layer.type == "MatMul":
            taken = layer.inputs[0].dims
            transposed = layer.data.get("transpose_a", "false") in ("true", "1") and len(taken) > 1
            each = [taken[-2 if transposed else -1]]
        else:
            each = layer.inputs[1].dims[1 if layer.type == "Convolution" else 2 :]
        sizes = [1 if made[0] < 0 else made[0], *made[1:], *each]
        if min(sizes) < 0:
            return None
        total += 2 * math.prod(sizes)
    return total or None


def _whole(text: str) -> int:
    """Return the integer in ``text``; -1 when there is none or it is absurd."""
    text = text.strip()
    return int(text) if re.fullmatch(r"-?\d{1,18}", text) else -1
