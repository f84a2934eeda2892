"""Read a TFLite file: inputs and outputs of its signature, operators, quantisation, operators that are not TFLite's."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass

from analyzer.draft import Draft, clean, cut_short, listing
from analyzer.flatbuffer import NotFlatbuffer, Table, root
from analyzer.formats import Seen
from analyzer.keras_config import named_axes
from analyzer.tensorflow_danger import judge
from analyzer.tflite_operators import BUILTIN
from schemas.descriptor import DType, KnownBy, TensorSpec
from schemas.errors import ModelFailed

MAX_AXES = 16
MAX_TENSORS = 1000
_CUSTOM = 32
"""BuiltinOperator.CUSTOM: the operator's own name stands beside it."""
# TensorType: name and bits an element
_TYPES: dict[int, tuple[str, int]] = {
    0: ("float32", 32), 1: ("float16", 16), 2: ("int32", 32), 3: ("uint8", 8), 4: ("int64", 64), 5: ("string", 0),
    6: ("bool", 8), 7: ("int16", 16), 8: ("complex64", 64), 9: ("int8", 8), 10: ("float64", 64),
    11: ("complex128", 128), 12: ("uint64", 64), 13: ("resource", 0), 14: ("variant", 0), 15: ("uint32", 32),
    16: ("uint16", 16), 17: ("int4", 4), 18: ("bfloat16", 16),
}  # fmt: skip
_SPEC_DTYPES: dict[str, DType] = {
    "float32": "float32", "float16": "float16", "float64": "float64", "bfloat16": "bfloat16", "int64": "int64",
    "int32": "int32", "int16": "int16", "int8": "int8", "uint64": "uint64", "uint32": "uint32", "uint16": "uint16",
    "uint8": "uint8", "bool": "bool", "string": "string",
}  # fmt: skip
_MATRICES = frozenset({"FULLY_CONNECTED", "BATCH_MATMUL", "UNIDIRECTIONAL_SEQUENCE_LSTM", "LSTM"})


def read_tflite(draft: Draft, seen: Seen) -> None:
    """Fill ``draft`` from a TFLite file. Raises ModelFailed when its offsets lead out of the file."""
    with draft.file.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            _read(draft, root(data))
        except NotFlatbuffer:
            raise cut_short("TFLite model", "an offset in it leads behind its end") from None


@dataclass(frozen=True)
class _Tensor:
    name: str
    kind: int
    shape: tuple[int, ...]
    buffer: int
    scales: int
    """Scales of its quantisation: 0 for none, 1 for the tensor, more for one a channel."""


def _read(draft: Draft, model: Table) -> None:
    draft.know(framework="tflite", framework_version=f"schema {model.scalar(0, '<I')}", producer=model.string(3))
    codes = [_operator_name(code) for code in model.tables(1)]
    graphs = list(model.tables(2))
    if not graphs:
        raise ModelFailed("This TFLite file holds no graph.", hint="Convert the model to TFLite again.")
    counts: dict[str, int] = {}
    matrix_buffers: dict[int, int] = {}
    for graph in graphs:
        for operator in graph.tables(3):
            index = operator.scalar(0, "<I")
            name = codes[index] if index < len(codes) else "?"
            counts[name] = counts.get(name, 0) + 1
    draft.operators(counts)
    judge(draft, {name.removeprefix("Flex"): number for name, number in counts.items()})
    first = graphs[0]
    tensors = [_tensor(table) for table in first.tables(0)]
    for operator in first.tables(3):
        index = operator.scalar(0, "<I")
        if index < len(codes) and codes[index] in _MATRICES:
            for number in operator.numbers(1, "<i"):
                if 0 <= number < len(tensors):
                    matrix_buffers[tensors[number].buffer] = 0
    _parameters(draft, model, graphs, matrix_buffers)
    takes, gives = _signature(model)
    draft.know(
        inputs=tuple(_specs(tensors, first.numbers(1, "<i"), takes)),
        outputs=tuple(_specs(tensors, first.numbers(2, "<i"), gives)),
    )
    _notes(draft, counts, tensors, len(graphs))


def _operator_name(code: Table) -> str:
    # The first field is a byte that ran out of numbers; the fourth took over.
    builtin = max(code.scalar(0, "<b"), code.scalar(3, "<i"))
    if builtin == _CUSTOM:
        return clean(code.string(1), 100) or "CUSTOM"
    return BUILTIN[builtin] if 0 <= builtin < len(BUILTIN) else f"BUILTIN_{builtin}"


def _tensor(table: Table) -> _Tensor:
    declared, shape = table.numbers(7, "<i"), table.numbers(0, "<i")
    if len(shape) > MAX_AXES:
        raise NotFlatbuffer
    sizes = declared if len(declared) == len(shape) else shape
    quantisation = table.table(4)
    scales = quantisation.length(2, 4) if quantisation is not None else 0
    return _Tensor(clean(table.string(3)), table.scalar(1, "<b"), sizes, table.scalar(2, "<I"), scales)


def _signature(model: Table) -> tuple[dict[int, str], dict[int, str]]:
    """Return tensor to name for inputs and outputs of the only signature; empty where there is none or several."""
    signatures = list(model.tables(7))
    if len(signatures) != 1:
        return {}, {}
    maps = []
    for field in (0, 1):
        maps.append({item.scalar(1, "<I"): clean(item.string(0)) for item in signatures[0].tables(field)})
    return maps[0], maps[1]


def _specs(tensors: list[_Tensor], numbers: tuple[int, ...], names: dict[int, str]) -> Iterator[TensorSpec]:
    for number in numbers[:MAX_TENSORS]:
        if not 0 <= number < len(tensors):
            raise NotFlatbuffer
        tensor = tensors[number]
        dtype = _SPEC_DTYPES.get(_TYPES.get(tensor.kind, ("", 0))[0])
        if dtype is None:
            continue
        name = names.get(number) or tensor.name.split(":")[0] or f"tensor_{number}"
        sizes = [None if size < 0 else size for size in tensor.shape]
        yield TensorSpec(
            name=name, dtype=dtype, shape=named_axes(name, sizes, len(numbers) == 1), known_by=KnownBy.HEADER
        )


def _parameters(draft: Draft, model: Table, graphs: list[Table], matrices: dict[int, int]) -> None:
    # The buffer's own size is in the file or, above 2 GiB, in its third field.
    sizes = [max(buffer.length(0), buffer.scalar(2, "<Q")) for buffer in model.tables(4)]
    found: dict[int, tuple[str, int, int]] = {}
    for graph in graphs:
        for table in graph.tables(0):
            tensor = _tensor(table)
            name, bits = _TYPES.get(tensor.kind, ("", 0))
            if not 0 < tensor.buffer < len(sizes) or not sizes[tensor.buffer] or not bits:
                continue
            count = math.prod(size for size in tensor.shape if size > 0)
            # Small integers are shapes and axes, not weights.
            if name in ("int32", "int64") and count < 16:
                continue
            found[tensor.buffer] = (name, count, min(sizes[tensor.buffer], (count * bits + 7) // 8))
    draft.parameters(found.values())
    draft.know(matrix_bytes=sum(size for buffer, (_, _, size) in found.items() if buffer in matrices))


def _notes(draft: Draft, counts: dict[str, int], tensors: list[_Tensor], graphs: int) -> None:
    quantised = [tensor for tensor in tensors if tensor.scales]
    if quantised:
        channels = ", some one a channel" if any(tensor.scales > 1 for tensor in quantised) else ""
        draft.note(f"It is quantised: {len(quantised)} of {len(tensors)} tensors have a scale{channels}.")
    flex = sorted(name for name in counts if name.startswith("Flex"))
    if flex:
        draft.note(f"It calls operators of TensorFlow itself, which only a runtime with them has: {listing(flex)}.")
    own = sorted(name for name in counts if name not in BUILTIN and name not in flex)
    if own:
        draft.note(f"It calls operators that are not TFLite's own: {listing(own)}.")
    if graphs > 1:
        draft.note(f"It holds {graphs} graphs; the first is served, the others are what its branches and loops run.")
