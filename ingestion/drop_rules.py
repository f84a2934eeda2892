"""What in a watched folder is a model of its own, what belongs to one, and what is no drop at all.

A file is a drop unless it is ignored (dot-files, backups, unfinished downloads), settles something about another drop
(``*.modelium.yaml``), or accompanies one (``.py``, ``.npz``, an ONNX file's external data).

A folder is one drop when it holds a model: a file that only model folders have (:data:`MARKERS`), shards of one model,
or an ONNX file with its external data. Any other folder groups drops: each file and folder in it is judged by itself,
so ``teamA/model.onnx`` is a file named ``teama-model``. A file that makes a folder a model, arriving in a group, makes
the group one model from then on.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection
from pathlib import Path

from schemas.sidecar import FILE_SUFFIX, FOLDER_NAME

MARKERS = frozenset(
    {
        FOLDER_NAME,
        "config.json", "model_index.json", "modules.json", "adapter_config.json", "generation_config.json",
        "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json",
        "saved_model.pb", "saved_model.pbtxt", "keras_metadata.pb",
        "_CHECKPOINT_METADATA", "manifest.ocdbt",
        "MLmodel", "config.pbtxt",
    }
)  # fmt: skip
"""Names that only a model folder holds: ours, Hugging Face's, TensorFlow's, Orbax's, MLflow's, Triton's."""

_UNFINISHED = (".part", ".partial", ".tmp", ".temp", ".crdownload", ".download", ".incomplete", ".swp", ".filepart")
_COMPANIONS = (".py", ".npz")
_MODEL_SUFFIXES = (
    ".onnx", ".pt", ".pth", ".pt2", ".ts", ".safetensors", ".pkl", ".pickle", ".joblib", ".skops",
    ".h5", ".keras", ".tflite", ".gguf", ".tar", ".gz", ".tgz", ".zip", ".7z",
)  # fmt: skip
_NOTES = (".md", ".txt", ".rst", ".json", ".yaml", ".yml", ".png", ".jpg", ".svg", ".csv", ".log", "license", "readme")
_INDEX_SUFFIX = ".index.json"
_INDEX_BYTES = 64 << 20
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.[A-Za-z]+$")
# Only file names are looked for, so that no parser meets a hostile index.
_INDEXED_FILE = re.compile(rb'"([^"\\/\x00-\x1f]{1,255}\.(?:safetensors|bin|pt|pth|h5|msgpack))"')


def is_ignored(name: str) -> bool:
    """Whether an entry of that name is never a drop or part of one: hidden, a backup, or not finished."""
    return name.startswith(".") or name.endswith("~") or name.lower().endswith(_UNFINISHED)


def left_out(relative: str) -> bool:
    """Whether a file inside a model folder stays out of the artifact: ignored names, and the sidecar."""
    return relative == FOLDER_NAME or is_ignored(relative.rsplit("/", 1)[-1])


def is_sidecar(name: str) -> bool:
    """Whether that is the name of a file's sidecar."""
    return name.endswith(FILE_SUFFIX) and name != FILE_SUFFIX


def is_companion(name: str) -> bool:
    """Whether a file of that name accompanies a model and never starts a job."""
    return name.lower().endswith(_COMPANIONS) or _owner_of_data(name) is not None


def makes_a_model_folder(name: str) -> bool:
    """Whether a file of that name, arriving in a group, may make it a model folder."""
    return (
        name in MARKERS or name.endswith(_INDEX_SUFFIX) or bool(_SHARD.search(name)) or _owner_of_data(name) is not None
    )


def is_model_folder(folder: Path) -> bool:
    """Whether the folder as it stands now is one model; decided by names alone, nothing is opened."""
    try:
        names = {entry.name for entry in os.scandir(folder) if not entry.is_dir(follow_symlinks=False)}
    except OSError:
        return False
    if any(
        name in MARKERS or name.endswith(_INDEX_SUFFIX) or _SHARD.search(name) or _owner_of_data(name) in names
        for name in names
    ):
        return True
    # One ONNX file among files that are no models: older exporters write one file of external data a tensor.
    others = [n for n in names if not is_ignored(n) and not is_sidecar(n) and not is_companion(n)]
    models = [n for n in others if n.lower().endswith(_MODEL_SUFFIXES)]
    data = [n for n in others if n not in models and not n.lower().endswith(_NOTES)]
    return len(models) == 1 and models[0].lower().endswith(".onnx") and bool(data)


def missing_files(folder: Path, present: Collection[str]) -> tuple[str, ...]:
    """Return the files that the folder's weight indexes name and that are not among ``present`` yet."""
    named: set[str] = set()
    for index in (name for name in present if name.endswith(_INDEX_SUFFIX) and "/" not in name):
        try:
            fd = os.open(folder / index, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            continue
        with os.fdopen(fd, "rb") as file:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                named |= {m.decode("utf-8", "replace") for m in _INDEXED_FILE.findall(file.read(_INDEX_BYTES))}
    return tuple(sorted(named - set(present)))


def _owner_of_data(name: str) -> str | None:
    """Return the ONNX file whose external data a file of that name is by the exporters' habits, or None."""
    for suffix in (".data", "_data"):
        owner = name.removesuffix(suffix)
        if owner != name and owner.lower().endswith(".onnx"):
            return owner
    return None
