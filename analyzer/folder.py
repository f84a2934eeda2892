"""Tell what a folder is: a Hugging Face model, an ONNX file with its data, a SavedModel, or no model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from analyzer.draft import listing
from analyzer.formats import Seen, recognise
from analyzer.hf_folder import WEIGHTS, transformer_folder
from analyzer.peft_adapter import is_adapter
from schemas.descriptor import Format
from schemas.errors import LimitExceeded, ModelFailed, ModeliumError, Unsupported

MAX_FILES = 20_000
MAX_DEPTH = 16
_MAX_SNIFFED = 200
_PARTS = frozenset({"model_index.json", "adapter_config.json"})
"""Files that say that the weights beside them are only a part of a model."""
_LOADED = frozenset({Format.TORCHSCRIPT, Format.EXPORTED_PROGRAM, Format.TORCH_STATE_DICT, Format.SAFETENSORS,
                     Format.SKLEARN, Format.PICKLE, Format.GGUF, Format.TFLITE, Format.KERAS, Format.XGBOOST,
                     Format.LIGHTGBM, Format.CATBOOST, Format.SKOPS})  # fmt: skip


_ORBAX = ("_CHECKPOINT_METADATA", "_METADATA", "default/_METADATA")
"""Files that an Orbax checkpoint, or the item in it that most have, is told by."""


def files_of(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield relative name and path of every plain file, sorted. Raises LimitExceeded for absurd numbers."""
    count = 0
    for root, folders, names in os.walk(folder, followlinks=False):
        here = Path(root)
        if len(here.relative_to(folder).parts) > MAX_DEPTH:
            raise LimitExceeded("This folder is nested too deep.", hint="Drop the model's own folder.", limit=MAX_DEPTH)
        folders.sort()
        for name in sorted(names):
            count += 1
            if count > MAX_FILES:
                raise LimitExceeded(
                    f"This folder holds more than {MAX_FILES} files.",
                    hint="Drop the model's own folder.",
                    limit=MAX_FILES,
                )
            path = here / name
            if path.is_file() and not path.is_symlink():
                yield path.relative_to(folder).as_posix(), path


def recognise_folder(folder: Path) -> tuple[Seen, str | None]:
    """Return what the folder is, and where it is a folder around one model file, that file's relative path.

    Raises ModelFailed, naming what was looked for, when it is no model.
    """
    if (folder / "saved_model.pb").is_file() or (folder / "saved_model.pbtxt").is_file():
        return Seen(Format.SAVED_MODEL, "saved-model"), None
    if any((folder / name).is_file() for name in _ORBAX):
        return Seen(Format.JAX_EXPORT, "orbax"), None
    files = dict(files_of(folder))
    if not files:
        raise ModelFailed("This folder is empty.", hint="Copy the model into it again.")
    transformer = transformer_folder(folder)
    weights = transformer is not None and any(
        (transformer / (name + end)).is_file() for name in WEIGHTS for end in ("", ".index.json")
    )
    if weights or is_adapter(folder, WEIGHTS):
        return Seen(Format.HUGGINGFACE, "huggingface"), None
    kinds = _kinds(files)
    onnx = [name for name, seen in kinds.items() if seen.format is Format.ONNX]
    if len(onnx) == 1:
        return Seen(Format.ONNX, "onnx"), onnx[0]
    if len(onnx) > 1:
        raise ModelFailed(
            f"This folder holds {len(onnx)} ONNX models: {listing(onnx)}.",
            hint="Drop each alone, with its data files in a folder of its own.",
        )
    openvino = _openvino(name for name, seen in kinds.items() if seen.format is Format.OPENVINO)
    if openvino is not None:
        return kinds[openvino], openvino
    if transformer is not None:
        return Seen(Format.HUGGINGFACE, "huggingface"), None
    models = [name for name, seen in kinds.items() if seen.format in _LOADED]
    if len(models) == 1 and not _PARTS.intersection(files):
        return kinds[models[0]], models[0]
    raise _no_model(folder, files, kinds)


def _openvino(names: Iterable[str]) -> str | None:
    """Return the .xml of the model among ``names``: the only one but for tokenizers, which some exports add."""
    models = [name for name in names if not name.endswith("tokenizer.xml")]
    if len(models) > 1:
        raise ModelFailed(
            f"This folder holds {len(models)} OpenVINO models: {listing(models)}.",
            hint="Drop each alone, its .xml and its .bin in a folder of its own.",
        )
    return models[0] if models else None


def _kinds(files: dict[str, Path]) -> dict[str, Seen]:
    """Recognise the files, those a person would call models first, so that a cap on their number misses little."""
    order = sorted(files, key=lambda name: (not name.endswith(".onnx"), name.count("/"), name))
    kinds: dict[str, Seen] = {}
    for name in order[:_MAX_SNIFFED]:
        try:
            kinds[name] = recognise(files[name])
        except ModeliumError:
            continue
    return kinds


def _no_model(folder: Path, files: dict[str, Path], kinds: dict[str, Seen]) -> ModelFailed:
    if (folder / "model_index.json").is_file():
        return Unsupported(
            "This folder is a diffusers pipeline of several models, which is not converted.",
            hint="Drop its parts one by one, exported to ONNX.",
        )
    models = [name for name, seen in kinds.items() if seen.format in _LOADED]
    if len(models) > 1:
        return ModelFailed(
            f"This folder is no model itself; it holds several: {listing(models)}.",
            hint="Drop each alone, with its sidecar and the files it names beside it.",
        )
    return ModelFailed(
        "This folder is no model: it has no config.json of a Hugging Face model with weights, no .onnx file and no "
        f"saved_model.pb (it holds {listing(files)}).",
        hint="Drop the model's own folder, or the model file alone.",
    )
