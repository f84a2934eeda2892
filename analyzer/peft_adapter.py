"""PEFT adapters: a folder that holds the difference to a base model, which has to lie inside it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from analyzer.draft import Draft, clean
from analyzer.exported_program import at
from schemas.errors import NeedsInput

CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
BASE = "base"
"""Where the base model is looked for first."""
_MAX_CONFIG_BYTES = 1 << 20


def is_adapter(folder: Path, weights: tuple[str, ...]) -> bool:
    """Whether the folder is an adapter and no model of its own, which would hold one of ``weights``."""
    whole = any((folder / (name + end)).exists() for name in weights for end in ("", ".index.json"))
    return (folder / CONFIG).is_file() and not whole


def base_folder(folder: Path, config: Any) -> Path:
    """Return the base model's folder inside the adapter's. Raises NeedsInput that says where to put it."""
    named = at(config, "base_model_name_or_path")
    named = named if isinstance(named, str) else ""
    parts = [part for part in named.split("/") if part != "."]
    plain = bool(parts) and all(re.fullmatch(r"[\w.-]{1,100}", part) and ".." not in part for part in parts)
    for place in (folder / BASE, *([folder.joinpath(*parts)] if plain else [])):
        if place != folder and (place / "config.json").is_file() and not place.is_symlink():
            return place
    raise NeedsInput(
        f"Where is the base model {clean(named, 120) or 'of this adapter'}? This folder holds a PEFT adapter, which is "
        "only the difference to it.",
        hint=f"Copy the base model's folder into this one as {BASE}/ (with config.json and weights) and drop it again; "
        "or merge it where the base is: `model.merge_and_unload().save_pretrained(FOLDER)`, and drop that.",
    )


def read_adapter(draft: Draft, folder: Path, config: Any) -> tuple[str, ...]:
    """Note what the adapter is; return its files. Raises NeedsInput when its weights are not there."""
    found = [name for name in ADAPTER_WEIGHTS if (folder / name).is_file()]
    if not found:
        raise NeedsInput(
            f"Where are the adapter's weights? The folder has {CONFIG} and no {ADAPTER_WEIGHTS[0]}.",
            hint="Copy the file into the folder and drop it again.",
        )
    kind, rank = at(config, "peft_type"), at(config, "r")
    rank_told = f" of rank {rank}" if isinstance(rank, int) else ""
    draft.note(f"A PEFT adapter ({clean(str(kind), 40)}{rank_told}), which is merged into its base model.")
    return (CONFIG, found[0])
