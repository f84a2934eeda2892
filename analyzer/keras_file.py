"""Read a Keras file, .keras (a zip) or .h5 (HDF5), for its config; weights are not read and no class is loaded."""

from __future__ import annotations

import json
import mmap
import re
from typing import Any

from analyzer.draft import Draft, clean
from analyzer.formats import Seen
from analyzer.keras_config import read_config
from analyzer.zip_members import open_zip
from schemas.descriptor import KnownBy
from schemas.errors import ModelFailed, NeedsInput, Unsupported

MAX_CONFIG_BYTES = 64 << 20
MAX_TRIES = 16
"""Places in an HDF5 file that look like the start of a config and are tried."""
_STARTS = re.compile(rb'\{"(?:class_name|module)":\s*"')
_VERSION = re.compile(rb"keras_version")
_NUMBER = re.compile(rb"\d+\.\d+\.\d+")


def read_keras_zip(draft: Draft, seen: Seen) -> None:
    """Fill ``draft`` from ``config.json`` and ``metadata.json`` of a .keras file."""
    with open_zip(draft.file) as members:
        config = _json(members.read("config.json", MAX_CONFIG_BYTES), "config.json")
        metadata: Any = {}
        if "metadata.json" in members.names:
            metadata = _json(members.read("metadata.json", 1 << 20), "metadata.json")
        weights = sum(size for name, size in members.sizes.items() if name.endswith(".weights.h5"))
    version = metadata.get("keras_version") if isinstance(metadata, dict) else None
    draft.know(framework_version=version if isinstance(version, str) else None)
    draft.know(KnownBy.GUESS, memory_bytes=weights + max(weights // 4, 16 << 20))
    read_config(draft, config)


def read_keras_h5(draft: Draft, seen: Seen) -> None:
    """Fill ``draft`` from the ``model_config`` of an HDF5 file, found by its own text; HDF5 itself is not parsed.

    Refuses weights without a config: they belong to a class that only its author has.
    """
    draft.know(framework="keras")
    path = draft.file
    if path.stat().st_size < 64:
        raise ModelFailed("This HDF5 file is truncated: it ends inside its header.", hint="Copy it again.")
    with path.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
        named = data.find(b"model_config") >= 0
        weights = data.find(b"layer_names") >= 0 or data.find(b"_layer_checkpoint_dependencies") >= 0
        weights = weights or data.find(b"layers/") >= 0 or data.find(b"vars") >= 0
        config = _config_in(data) if named else None
        draft.know(framework_version=_version_in(data))
    if config is not None:
        draft.know(KnownBy.GUESS, memory_bytes=draft.size_bytes + max(draft.size_bytes // 4, 16 << 20))
        read_config(draft, config)
    elif named:
        draft.note("Its config lies in the file in a way that only HDF5's own library reads.")
    elif weights:
        draft.refuse(
            NeedsInput(
                "Which model do these weights belong to? This HDF5 file holds Keras weights and no architecture.",
                hint="Weights alone can't be converted: where the model is built, load them and save the whole model, "
                "`model.load_weights(path); model.save('model.keras')`, and drop that file.",
            )
        )
    else:
        draft.refuse(
            Unsupported(
                "This is an HDF5 file without a Keras model in it.",
                hint="Drop a file that `model.save('model.keras')` or `model.save('model.h5')` wrote; samples belong "
                "beside a model, named by its sidecar as an .npz.",
            )
        )


def _json(data: bytes, name: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ModelFailed(
            f"The {name} of this Keras file is broken: {clean(str(error), 120)}.", hint="Save the model again."
        ) from None


def _config_in(data: mmap.mmap) -> Any:
    """Return the first JSON object in ``data`` that is a model's config, None when there is none."""
    for number, found in enumerate(_STARTS.finditer(data)):
        if number >= MAX_TRIES:
            return None
        start = found.start()
        text = data[start : start + _length(data, start)].decode("utf-8", "replace")
        try:
            config, _ = json.JSONDecoder().raw_decode(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(config, dict) and "class_name" in config and "config" in config:
            return config
    return None


def _length(data: mmap.mmap, start: int) -> int:
    """Return up to where a JSON text from ``start`` on may reach: json.dumps writes no zero byte."""
    end = data.find(b"\0", start, start + MAX_CONFIG_BYTES)
    return (end if end >= 0 else min(len(data), start + MAX_CONFIG_BYTES)) - start


def _version_in(data: mmap.mmap) -> str | None:
    at = _VERSION.search(data)
    near = _NUMBER.search(data, at.start(), min(at.start() + 4096, len(data))) if at is not None else None
    return near[0].decode() if near is not None else None
