"""Describe what JAX leaves: a function of jax.export, StableHLO alone, an Orbax checkpoint. None is converted."""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from analyzer.draft import Draft, clean
from analyzer.flatbuffer import NotFlatbuffer, Table, root
from analyzer.formats import Seen
from analyzer.saved_model import JAX_HINT
from schemas.descriptor import Dim, DType, KnownBy, TensorSpec
from schemas.errors import NeedsInput, Unsupported

MAX_TENSORS = 1000
MAX_METADATA_BYTES = 64 << 20
# DType of jax.export's serialization.fbs, and of numpy's names in Orbax metadata.
_DTYPES: dict[int, DType] = {
    0: "bool", 1: "int8", 2: "int16", 3: "int32", 4: "int64", 5: "uint8", 6: "uint16", 7: "uint32", 8: "uint64",
    9: "float16", 10: "float32", 11: "float64", 14: "bfloat16",
}  # fmt: skip
_KEPT = "nothing that is kept converts StableHLO to ONNX"


def read_jax_export(draft: Draft, seen: Seen) -> None:
    """Fill ``draft`` from a file of ``jax.export``, and refuse it with what to do instead."""
    draft.know(framework="jax")
    with draft.file.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            _function(draft, root(data))
        except NotFlatbuffer:
            draft.note("Its header is of a version of jax.export that is not read here.")
    draft.refuse(Unsupported(f"This is a JAX function serialised by jax.export, and {_KEPT}.", hint=JAX_HINT))


def read_stablehlo(draft: Draft, seen: Seen) -> None:
    """Refuse an MLIR module of StableHLO, as bytecode or text, with what to do instead."""
    draft.know(framework="jax")
    with draft.file.open("rb") as handle:
        head = handle.read(64)
    if head[:4] == b"ML\xefR":
        draft.know(producer=head[5:].partition(b"\0")[0].decode("ascii", "replace"))
    draft.refuse(
        Unsupported(f"This is an MLIR module of StableHLO, as JAX and XLA write it, and {_KEPT}.", hint=JAX_HINT)
    )


def read_orbax(draft: Draft, seen: Seen) -> None:
    """Fill ``draft`` from an Orbax checkpoint's metadata, and ask for the function its arrays belong to."""
    draft.know(framework="jax", producer="orbax")
    folder = next((f for f in (draft.path, draft.path / "default") if (f / "_METADATA").is_file()), draft.path)
    tree = _json(folder / "_METADATA").get("tree_metadata")
    names: list[str] = []
    shapes: dict[str, int] = {}
    for key, value in list(tree.items())[:100_000] if isinstance(tree, dict) else ():
        names.append(clean(str(key).replace("'", "").strip("()").replace(", ", ".").rstrip(",")))
        meta = value.get("value_metadata") if isinstance(value, dict) else None
        shape = meta.get("write_shape") if isinstance(meta, dict) else None
        if isinstance(shape, list) and len(shape) <= 16 and all(isinstance(n, int) and 0 <= n < 1 << 40 for n in shape):
            count = 1
            for size in shape:
                count *= size
            shapes[names[-1]] = count
    draft.know(files=tuple(names[:200]), parameter_count=sum(shapes.values()) or None)
    many = f" of {len(names)} arrays ({', '.join(names[:4])}{' ...' if len(names) > 4 else ''})" if names else ""
    draft.refuse(
        NeedsInput(
            f"Which function do these weights belong to? This folder is an Orbax checkpoint{many} and holds no code.",
            hint=f"Restore it where the model is defined. {JAX_HINT}",
        )
    )


def _function(draft: Draft, exported: Table) -> None:
    draft.know(
        architecture=exported.string(1),
        framework_version=f"export version {exported.scalar(0, '<H')}",
    )
    draft.know(inputs=tuple(_specs(exported, "input", 3, 22)), outputs=tuple(_specs(exported, "output", 5, 23)))
    draft.note(f"Its StableHLO takes {exported.length(13):,} bytes.")


def _specs(exported: Table, what: str, own: int, shared: int) -> Iterator[TensorSpec]:
    """Yield the tensors of the table's ``own`` vector, or, in newer files, of its indices into the shared one."""
    values = list(exported.tables(own))
    if not values:
        unique = list(exported.tables(19))
        values = [unique[i] for i in exported.numbers(shared, "<I") if 0 <= i < len(unique)]
    for number, value in enumerate(values[:MAX_TENSORS]):
        dtype = _DTYPES.get(value.scalar(2, "<b"))
        dims = tuple(_dim(text) for text in value.strings(1))
        if dtype is not None and len(dims) <= 16:
            yield TensorSpec(name=f"{what}_{number}", dtype=dtype, shape=dims, known_by=KnownBy.HEADER)


def _dim(text: str) -> Dim:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else clean(text, 60) or "unknown"


def _json(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file() or path.stat().st_size > MAX_METADATA_BYTES:
            return {}
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}
