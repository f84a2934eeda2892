"""A folder as timm puts it on a hub: weights, and a config.json that names the model for timm's create_model."""

from __future__ import annotations

import json
import re
from pathlib import Path

from schemas.errors import NeedsInput

_MAX_BYTES = 1 << 20


def sidecar_of_timm(folder: Path) -> NeedsInput | None:
    """Return the question whose answer is in the folder: the sidecar, word by word. None where timm did not write it.

    A person has to agree, as the class is a library's that the operator installs, and the weights do not say it.
    """
    config = folder / "config.json"
    if not config.is_file() or config.is_symlink() or config.stat().st_size > _MAX_BYTES:
        return None
    try:
        told = json.loads(config.read_bytes())
        name, settings = told["architecture"], told["pretrained_cfg"]
        size = settings["input_size"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    is_size = isinstance(size, list) and len(size) == 3 and all(type(n) is int and 0 < n < 1 << 16 for n in size)
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9_]{1,100}", name) or not is_size:
        return None
    classes = told.get("num_classes")
    args = f"{{num_classes: {classes}}}" if type(classes) is int and classes >= 0 else "{}"
    shape = ", ".join(map(str, size))
    return NeedsInput(
        f"Are these the weights of timm's {name}? The folder's config.json says so.",
        hint=f"Put a file modelium.yaml into the folder that says:\n"
        f"module: {{library: timm, class_name: {name}, args: {args}}}\n"
        f"inputs: [{{name: x, dtype: float32, shape: [batch, {shape}]}}]\n"
        "Then drop it again. The torch toolchain needs timm for it.",
    )
