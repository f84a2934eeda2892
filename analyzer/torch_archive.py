"""Read a torch zip: a state_dict, a whole pickled module, or TorchScript with its code."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

from analyzer.byte_source import ByteSource
from analyzer.draft import Draft, clean, cut_short
from analyzer.formats import Seen
from analyzer.pickle_machine import Reading, read_pickle
from analyzer.pickle_values import Instance, Value
from analyzer.pickled_module import asked_for
from analyzer.questions import which_class, whole_module
from analyzer.timm_folder import sidecar_of_timm
from analyzer.torch_tensors import (
    ITEM_BYTES,
    Tensor,
    first_shapes,
    module_class,
    module_is_root,
    named_tensors,
    record,
    tensor_of,
    weights_in,
)
from analyzer.zip_members import ZipMembers, open_zip
from schemas.descriptor import Format
from schemas.errors import ModelFailed

MAX_PICKLE_BYTES = 256 << 20
MAX_CODE_BYTES = 16 << 20
MAX_CODE_FILES = 2000

_OPERATOR = re.compile(r"\b(?:torch|ops\.(?P<space>\w{1,40}))\.(?P<name>[a-z_]\w{0,60})\(")
_NO_OPERATORS = frozenset({"aten::format", "aten::append", "aten::warn", "aten::unchecked_cast"})
"""Calls of the TorchScript language, not of tensors."""
_FORWARD = re.compile(r"  def forward\((?P<arguments>[^)]{0,4000})\) -> (?P<result>[^:\n]{1,400}):")
_ARGUMENT = re.compile(r"(\w{1,100}): ([^,\n]{1,200}(?:\[[^\]]{0,200}\])?)")


def read_torch_zip(draft: Draft, seen: Seen) -> None:
    """Fill ``draft`` from a torch zip that is no TorchScript."""
    with open_zip(draft.file) as members:
        reading = _pickle(members, f"{seen.detail}/data.pkl")
        draft.know(framework="pytorch")
        describe_saved(draft, reading)
        _check_storages(members, seen.detail, reading.root)


def describe_saved(draft: Draft, reading: Reading) -> None:
    """Tell state_dict from whole module by what the pickle would build, and ask or refuse accordingly."""
    root = reading.root
    weights = weights_in(root)
    owner = module_class(root)
    if owner is not None:
        draft.format = Format.TORCH_MODULE
        draft.know(architecture=owner.rpartition(".")[2])
        record(draft, named_tensors(root))
        draft.know(pickle_globals=asked_for(reading)[:1000])
        if len(asked_for(reading)) > 1000 or not module_is_root(root):
            draft.refuse(whole_module(owner))
        return
    draft.format = Format.TORCH_STATE_DICT
    if weights is not None:
        key, tensors = weights
        if key:
            draft.note(f"The weights are under the key {key!r} of a checkpoint.")
        record(draft, tensors)
        draft.note(f"Tensors: {first_shapes(tensors, 12)}.")
        what = "a state_dict" if not key else f"a checkpoint whose {clean(key, 60)!r} is a state_dict"
        if not draft.has_module:
            draft.refuse(sidecar_of_timm(draft.path) or which_class(what, len(tensors), first_shapes(tensors)))
        return
    tensor = tensor_of(root)
    thing = f"one tensor of shape {tensor.text()}" if tensor else "no tensors"
    draft.refuse(
        ModelFailed(
            f"This PyTorch file holds {thing}, not a model.",
            hint="Save the model with torch.export.save, torch.jit.save or torch.save(model.state_dict(), path).",
        )
    )


def saved_tensors(path: Path, seen: Seen) -> list[Tensor]:
    """Return the tensors of a weights file inside a folder; its data is checked to be whole."""
    if seen.kind == "torch-legacy":
        from analyzer.torch_legacy import legacy_tensors

        return legacy_tensors(path)
    with open_zip(path) as members:
        root = _pickle(members, f"{seen.detail}/data.pkl").root
        _check_storages(members, seen.detail, root)
        unique = {(tensor.key, tensor.shape, tensor.dtype): tensor for _, tensor in named_tensors(root)}
        return list(unique.values())


def _pickle(members: ZipMembers, name: str) -> Reading:
    data = members.read(name, MAX_PICKLE_BYTES)
    try:
        return read_pickle(ByteSource(io.BytesIO(data), len(data)))
    except EOFError:
        raise cut_short("PyTorch file", f"its {clean(name)} ends before the pickle does") from None


def _check_storages(members: ZipMembers, root_name: str, root: Value) -> None:
    for name, tensor in named_tensors(root):
        size = members.sizes.get(f"{root_name}/data/{tensor.key}")
        needed = tensor.storage_items * ITEM_BYTES.get(tensor.dtype, 1)
        if size is None or size < needed:
            raise ModelFailed(
                f"This PyTorch file lacks the data of {clean(name)!r} {tensor.text()}: it has "
                f"{'nothing' if size is None else f'{size} bytes'} where {needed} are needed.",
                hint="Save the model again and copy it again.",
            )


def read_torchscript(draft: Draft, seen: Seen) -> None:
    """Fill ``draft`` from a TorchScript archive: class, tensors, operators, and what ``forward`` takes."""
    with open_zip(draft.file) as members:
        root = _pickle(members, f"{seen.detail}/data.pkl").root
        draft.know(framework="pytorch", producer="TorchScript")
        if isinstance(root, Instance) and root.kind is not None:
            draft.know(architecture=re.sub(r"\.___torch_mangle_\d+", "", root.kind.path).rpartition(".")[2])
        constants = _pickle(members, f"{seen.detail}/constants.pkl").root
        # Constants lie in another folder than weights, so that equal keys are different storages.
        shared = [(name, replace(tensor, key=f"constants/{tensor.key}")) for name, tensor in named_tensors(constants)]
        record(draft, [*named_tensors(root), *shared])
        _check_storages(members, seen.detail, root)
        code = _code(members, seen.detail)
        counts: dict[str, int] = {}
        for text in code.values():
            for found in _OPERATOR.finditer(text):
                name = f"{found['space'] or 'aten'}::{found['name']}"
                counts[name] = counts.get(name, 0) + 1
        draft.operators({name: number for name, number in counts.items() if name not in _NO_OPERATORS})
        if isinstance(root, Instance) and root.kind is not None:
            _forward(draft, code, root.kind.path)
        for member in (f"{seen.detail}/extra/", "extra/"):
            extras = [name for name in members.names if name.startswith(member)]
            draft.know(files=tuple(extras[:100]))


def _code(members: ZipMembers, root: str) -> dict[str, str]:
    sources: dict[str, str] = {}
    budget = MAX_CODE_BYTES
    for name in members.names:
        if name.startswith(f"{root}/code/") and name.endswith(".py") and len(sources) < MAX_CODE_FILES and budget > 0:
            data = members.read(name, MAX_CODE_BYTES)
            budget -= len(data)
            sources[name[len(root) + 6 :]] = data.decode("utf-8", "replace")
    return sources


def _forward(draft: Draft, code: dict[str, str], class_path: str) -> None:
    module, _, name = class_path.rpartition(".")
    text = code.get(module.replace(".", "/") + ".py", "")
    start = text.find(f"class {name}(")
    found = _FORWARD.search(text, max(start, 0))
    if found is None:
        return
    arguments = [f"{a} ({clean(kind, 60)})" for a, kind in _ARGUMENT.findall(found["arguments"])[1:] if a]
    if arguments:
        draft.note(f"forward takes {', '.join(arguments[:20])} and returns {clean(found['result'], 120)}.")
