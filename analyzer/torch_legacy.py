"""Read a torch file written before the zip format: five pickles, then the storages' bytes."""

from __future__ import annotations

from pathlib import Path

from analyzer.byte_source import ByteSource, open_bytes
from analyzer.draft import Draft, cut_short
from analyzer.formats import Seen
from analyzer.pickle_machine import read_pickle
from analyzer.questions import whole_module
from analyzer.torch_archive import describe_saved
from analyzer.torch_tensors import ITEM_BYTES, Tensor, module_class, named_tensors
from schemas.descriptor import Format
from schemas.errors import ModelFailed

_WHAT = "PyTorch file in the format before 1.6"


def read_torch_legacy(draft: Draft, seen: Seen) -> None:
    """Fill ``draft`` from a legacy torch file; the format's parts are magic, version, system, object, keys, data."""
    try:
        with open_bytes(draft.file) as source:
            for _ in range(3):
                read_pickle(source, max_opcodes=10_000)
            reading = read_pickle(source)
            root = reading.root
            draft.know(framework="pytorch", producer="torch.save, legacy format")
            describe_saved(draft, reading)
            if draft.format is Format.TORCH_MODULE:
                draft.refuse(whole_module(module_class(root) or "unknown"))
            keys = read_pickle(source).root
            items = {tensor.key: ITEM_BYTES.get(tensor.dtype, 1) for _, tensor in named_tensors(root)}
            _walk_storages(source, keys, items)
    except EOFError:
        raise cut_short(_WHAT, f"it ends after {draft.size_bytes} bytes, inside its pickles or weights") from None


def legacy_tensors(path: Path) -> list[Tensor]:
    """Return the tensors of a legacy weights file. Raises ModelFailed when it is cut off."""
    try:
        with open_bytes(path) as source:
            for _ in range(3):
                read_pickle(source, max_opcodes=10_000)
            unique = {(t.key, t.shape, t.dtype): t for _, t in named_tensors(read_pickle(source).root)}
            keys = read_pickle(source).root
            _walk_storages(source, keys, {t.key: ITEM_BYTES.get(t.dtype, 1) for t in unique.values()})
    except EOFError:
        raise cut_short(_WHAT, "it ends inside its pickles or weights") from None
    return list(unique.values())


def _walk_storages(source: ByteSource, keys: object, items: dict[str, int]) -> None:
    if not isinstance(keys, list):
        raise ModelFailed(f"This {_WHAT} has no list of storages.", hint="Save the model again with torch.save.")
    for key in keys:
        count = int.from_bytes(source.read(8), "little", signed=True)
        if count < 0:
            raise ModelFailed(f"This {_WHAT} has a storage of {count} elements.", hint="Save the model again.")
        source.skip(count * items.get(str(key)[:64], 1))
