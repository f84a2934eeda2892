"""Which of an archive's files is the model: a lone file, a folder, or what a TorchServe archive names."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from analyzer.draft import clean, listing
from analyzer.folder import recognise_folder
from analyzer.formats import recognise
from schemas.descriptor import Format
from schemas.errors import ModelFailed, ModeliumError, NeedsInput, Unsupported
from schemas.sidecar import FOLDER_NAME

TORCHSERVE_MANIFEST = "MAR-INF/MANIFEST.json"
_MAX_MANIFEST_BYTES = 1 << 20
_MAX_FOLDERS = 2000
_NO_MODEL = frozenset({Format.TEXT, Format.EMPTY, Format.UNKNOWN, Format.NUMPY, Format.ARCHIVE})


@dataclass
class Chosen:
    """The model's file or folder below the unpacked one, and sentences that a person should read."""

    path: Path
    notes: list[str] = field(default_factory=list)


def choose(path: Path) -> Chosen:
    """Return the model in ``path``, what an archive unpacked to. Raises NeedsInput, naming them, for several.

    A folder without a model is returned as it is: the analysis says what is wrong with it.
    """
    if path.is_file():
        return Chosen(path)
    folder = _single_top(path)
    if (folder / TORCHSERVE_MANIFEST).is_file():
        return _torchserve(folder)
    if _is_model(folder):
        return Chosen(_lone_file(folder))
    models = _models_below(folder)
    if len(models) == 1:
        return Chosen(models[0], [f"Of the archive, {models[0].relative_to(folder).as_posix()} is the model."])
    if models:
        names = [model.relative_to(folder).as_posix() for model in models]
        raise NeedsInput(
            f"Which of the {len(names)} models in this archive is meant: {listing(names)}?",
            hint="Drop each in an archive of its own, or as a file or folder, with its sidecar beside it.",
        )
    return Chosen(folder)


def sidecar_in(path: Path) -> str | None:
    """Return the path of a sidecar inside ``path``, relative to it, None without one."""
    return FOLDER_NAME if path.is_dir() and (path / FOLDER_NAME).is_file() else None


def _single_top(folder: Path) -> Path:
    """Strip top folders that hold nothing but one folder."""
    while True:
        inside = list(folder.iterdir())
        if len(inside) != 1 or not inside[0].is_dir():
            return folder
        folder = inside[0]


def _is_model(folder: Path) -> bool:
    try:
        recognise_folder(folder)
    except Unsupported:
        return True  # known, and refused by the analysis with its own words
    except ModeliumError:
        return False
    return True


def _lone_file(folder: Path) -> Path:
    files = [item for item in folder.rglob("*") if item.is_file()]
    return files[0] if len(files) == 1 else folder


def _models_below(folder: Path) -> list[Path]:
    """Return the model files right below ``folder`` and the topmost folders that are models, sorted by path."""
    found: list[Path] = []
    waiting = [folder]
    for _ in range(_MAX_FOLDERS):
        if not waiting:
            break
        for item in sorted(waiting.pop(0).iterdir()):
            if item.is_dir():
                if _is_model(item):
                    found.append(item)
                else:
                    waiting.append(item)
            elif _is_model_file(item):
                found.append(item)
    return sorted(found)


def _is_model_file(path: Path) -> bool:
    try:
        return recognise(path).format not in _NO_MODEL
    except ModeliumError:
        return True  # broken, and so named rather than passed over


def _torchserve(folder: Path) -> Chosen:
    """Return the model that a TorchServe archive serves: its serialized file, or its Hugging Face folder."""
    manifest = _manifest(folder / TORCHSERVE_MANIFEST)
    notes = ["Of this TorchServe archive the model is taken; its handler and what that does to requests is not."]
    try:
        seen, _ = recognise_folder(folder)
        if seen.format is Format.HUGGINGFACE:
            return Chosen(folder, notes)
    except ModeliumError:
        pass
    name = str(manifest.get("serializedFile") or "")
    if not name:
        raise ModelFailed(
            "This TorchServe archive names no serialized model: its handler makes one itself.",
            hint="Save that model with torch.export.save or torch.jit.save and drop the file.",
        )
    file = folder / Path(name).name
    if not file.is_file():
        raise ModelFailed(
            f"This TorchServe archive lacks its serialized model {clean(name, 120)!r}.", hint="Archive it again."
        )
    own = str(manifest.get("modelFile") or "")
    if own:
        notes.append(
            f"Its class is defined in {clean(own, 120)}: where weights lack a class, name that file in the sidecar."
        )
    return Chosen(file, notes)


def _manifest(path: Path) -> dict[str, object]:
    try:
        if path.stat().st_size > _MAX_MANIFEST_BYTES:
            raise ValueError("it is too long")
        model = json.loads(path.read_text(encoding="utf-8")).get("model", {})
        if not isinstance(model, dict):
            raise ValueError("its 'model' is no mapping")
    except (ValueError, AttributeError, RecursionError) as error:
        raise ModelFailed(
            f"The manifest of this TorchServe archive cannot be read: {clean(str(error), 120)}.",
            hint="Archive it again.",
        ) from None
    return model
