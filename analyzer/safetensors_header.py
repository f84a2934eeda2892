"""Read a safetensors header: names, dtypes, shapes and offsets, every one of them checked against the file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from analyzer.draft import Draft, clean, cut_short, listing
from analyzer.exported_program import load_json
from analyzer.formats import Seen
from analyzer.questions import which_class
from analyzer.timm_folder import sidecar_of_timm
from schemas.errors import LimitExceeded, ModelFailed

MAX_HEADER_BYTES = 64 << 20
"""Below the library's own limit of 100 MB: as Python objects a header takes many times its bytes."""
MAX_TENSORS = 1_000_000
_DTYPES = {
    "F64": ("float64", 64), "F32": ("float32", 32), "F16": ("float16", 16), "BF16": ("bfloat16", 16),
    "I64": ("int64", 64), "I32": ("int32", 32), "I16": ("int16", 16), "I8": ("int8", 8), "U64": ("uint64", 64),
    "U32": ("uint32", 32), "U16": ("uint16", 16), "U8": ("uint8", 8), "BOOL": ("bool", 8), "C64": ("complex64", 64),
    "F8_E4M3": ("float8_e4m3fn", 8), "F8_E5M2": ("float8_e5m2", 8), "F8_E8M0": ("float8_e8m0fnu", 8),
    "F4": ("float4", 4), "F6_E2M3": ("float6", 6), "F6_E3M2": ("float6", 6),
}  # fmt: skip
_FRAMEWORKS = {"pt": "pytorch", "tf": "tensorflow", "np": "numpy", "flax": "jax", "mlx": "mlx"}


@dataclass(frozen=True)
class SafeTensor:
    """One tensor of a header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def _broken(fact: str) -> ModelFailed:
    return ModelFailed(f"This safetensors file is broken: {fact}.", hint="Save the model again and copy it again.")


def read_header(path: Path) -> tuple[list[SafeTensor], dict[str, str]]:
    """Return the tensors in file order and the metadata. Raises ModelFailed for anything that does not add up."""
    size = path.stat().st_size
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if length > MAX_HEADER_BYTES:
            raise LimitExceeded(
                f"This safetensors file announces a header of {length} bytes, above the limit of {MAX_HEADER_BYTES}.",
                hint="It is damaged or no safetensors file; save the model again.",
                limit=MAX_HEADER_BYTES,
                actual=length,
            )
        if 8 + length > size:
            raise cut_short("safetensors file", f"its header takes {8 + length} bytes and the file has {size}")
        header = load_json(handle.read(length), "safetensors header")
    if not isinstance(header, dict) or len(header) > MAX_TENSORS:
        raise _broken("its header is no table of tensors")
    metadata = header.pop("__metadata__", {})
    placed: list[tuple[int, int, SafeTensor]] = []
    for name, entry in header.items():
        placed.append(_tensor(name, entry))
    placed.sort(key=lambda item: (item[0], item[1]))
    end = 0
    for start, stop, tensor in placed:
        if start != end:
            raise _broken(f"the data of {clean(tensor.name, 80)!r} starts at {start} where {end} was expected")
        end = stop
    if 8 + length + end > size:
        raise cut_short("safetensors file", f"its tensors end at byte {8 + length + end} and the file has {size}")
    if 8 + length + end < size:
        raise _broken(f"{size - 8 - length - end} bytes follow the last tensor")
    texts = metadata.items() if isinstance(metadata, dict) else ()
    return [tensor for _, _, tensor in placed], {k: v for k, v in texts if isinstance(v, str)}


def _tensor(name: str, entry: object) -> tuple[int, int, SafeTensor]:
    if not isinstance(entry, dict):
        raise _broken(f"its entry {clean(name, 80)!r} describes no tensor")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise _broken(f"its tensor {clean(name, 80)!r} has the unknown dtype {clean(str(dtype), 40)!r}")
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or len(numbers) > 32:
            raise _broken(f"its tensor {clean(name, 80)!r} has no shape or offsets")
        if not all(type(n) is int and 0 <= n < 1 << 48 for n in numbers):
            raise _broken(f"its tensor {clean(name, 80)!r} has a shape or offset that is no size")
    assert isinstance(shape, list) and isinstance(offsets, list)
    label, bits = _DTYPES[dtype]
    nbytes = (math.prod(shape) * bits + 7) // 8
    if len(offsets) != 2 or offsets[1] - offsets[0] != nbytes:
        raise _broken(f"the offsets of its tensor {clean(name, 80)!r} do not fit its shape of {nbytes} bytes")
    return offsets[0], offsets[1], SafeTensor(name, label, tuple(shape), nbytes)


def read_safetensors(draft: Draft, seen: Seen) -> None:
    """Fill ``draft`` from one safetensors file, which holds weights and no code."""
    tensors, metadata = read_header(draft.file)
    draft.know(framework=_FRAMEWORKS.get(metadata.get("format", "pt"), "pytorch"))
    if not tensors:
        raise ModelFailed("This safetensors file holds no tensors.", hint="Save the model's weights into it.")
    draft.parameters((t.dtype, t.count, t.size_bytes) for t in tensors)
    shapes = [f"{t.name} {list(t.shape)}" for t in tensors]
    telling = [f"{t.name} {list(t.shape)}" for t in tensors if len(t.shape) > 1]
    draft.note(f"Tensors: {listing(shapes, most=12)}.")
    if not draft.has_module:
        draft.refuse(
            sidecar_of_timm(draft.path)
            or which_class("a safetensors file", len(tensors), listing(telling or shapes, most=3))
        )
