"""A sentence-transformers folder: what stands behind its transformer, so that pooling and the rest are in the graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters.folder_json import read_list, read_object
from schemas.errors import ModelFailed, Unsupported

if TYPE_CHECKING:
    import torch

SENTENCE_OUTPUT = "sentence_embedding"
"""The one output of a sentence-transformers folder: one row of numbers for each text."""


@dataclass(frozen=True)
class SentencePart:
    """One entry of modules.json."""

    kind: str
    path: str


def sentence_parts(folder: Path) -> list[SentencePart]:
    """Return the parts of a sentence-transformers folder in order, the transformer first; [] for any other folder."""
    file = folder / "modules.json"
    if not file.is_file():
        return []
    parts = [
        SentencePart(str(item.get("type", "")).rsplit(".", 1)[-1], str(item.get("path", "")))
        for item in read_list(file)
    ]
    for part in parts:
        inside = (folder / part.path).resolve()
        if not inside.is_relative_to(folder.resolve()):
            raise ModelFailed("modules.json names a folder outside the model.", hint="Save the model again.")
    if not parts or parts[0].kind != "Transformer":
        raise Unsupported(
            "modules.json does not start with a Transformer.",
            hint="Only Transformer, Pooling, Dense and Normalize are known.",
        )
    return parts


def sentence_module(model: torch.nn.Module, folder: Path, parts: Sequence[SentencePart]) -> torch.nn.Module:
    """Return the transformer with the folder's pooling, dense and normalising parts behind it."""
    import torch

    steps: list[tuple[str, Any]] = []
    for part in parts[1:]:
        if part.kind == "Pooling":
            steps.append(("pool", _pooling_modes(folder / part.path)))
        elif part.kind == "Normalize":
            steps.append(("normalize", None))
        elif part.kind == "Dense":
            steps.append(("dense", _dense(folder / part.path)))
        elif part.kind != "Dropout":
            raise Unsupported(
                f"The sentence-transformers part {part.kind!r} is not known.",
                hint="Transformer, Pooling, Dense and Normalize are; export the model to ONNX yourself otherwise.",
            )
    if not any(kind == "pool" for kind, _ in steps):
        raise Unsupported("modules.json has no Pooling part.", hint="Serve the transformer's own folder instead.")

    class SentenceModule(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.transformer = model
            self.dense = torch.nn.ModuleList(step for kind, step in steps if kind == "dense")

        def forward(self, given: dict[str, torch.Tensor], fixed: dict[str, Any]) -> dict[str, torch.Tensor]:
            tokens = self.transformer(**given, **fixed)["last_hidden_state"]
            mask = given.get("attention_mask")
            if mask is None:
                mask = torch.ones(tokens.shape[:2], dtype=torch.int64)
            rows, dense = tokens, iter(self.dense)
            for kind, step in steps:
                if kind == "pool":
                    rows = _pool(tokens, mask, step)
                elif kind == "dense":
                    rows = next(dense)(rows)
                else:
                    rows = torch.nn.functional.normalize(rows, p=2.0, dim=-1)
            return {SENTENCE_OUTPUT: rows, "last_hidden_state": tokens}

    return SentenceModule().eval()


_POOLING_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""In the order in which sentence-transformers joins them."""


def _pooling_modes(folder: Path) -> list[str]:
    config = read_object(folder / "config.json")
    modes = [mode for key, mode in _POOLING_MODES.items() if config.get(key)]
    declared = config.get("pooling_mode")
    if not modes and declared:
        modes = [declared] if isinstance(declared, str) else [str(mode) for mode in declared]
    others = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
    if not modes or set(modes) - set(_POOLING_MODES.values()) or set(others) - set(_POOLING_MODES):
        raise Unsupported(
            f"The pooling {', '.join(modes + others) or 'of this folder'} is not known.",
            hint="Pooling by cls, mean, max, mean_sqrt_len, weightedmean or lasttoken is.",
        )
    return modes


def _pool(tokens: torch.Tensor, mask: torch.Tensor, modes: Sequence[str]) -> torch.Tensor:
    """Return one row for each text: tokens is (batch, sequence, width), mask (batch, sequence) of 0 and 1."""
    import torch

    wide = mask.unsqueeze(-1).to(tokens.dtype)
    rows = []
    for mode in modes:
        if mode == "cls":
            rows.append(tokens[:, 0])
        elif mode == "max":
            rows.append(tokens.masked_fill(wide == 0, -1e9).amax(1))
        elif mode == "weightedmean":
            # Later tokens weigh more, as in SGPT.
            weights = wide * torch.arange(1, tokens.shape[1] + 1, dtype=tokens.dtype)[None, :, None]
            rows.append((tokens * weights).sum(1) / weights.sum(1).clamp(min=1e-9))
        elif mode == "lasttoken":
            # The last place where the mask is 1, wherever the padding is.
            last = (mask * torch.arange(tokens.shape[1])).argmax(1)
            rows.append(tokens.gather(1, last[:, None, None].expand(-1, 1, tokens.shape[2])).squeeze(1))
        else:
            # 1e-9 keeps a row without tokens from dividing by zero, as sentence-transformers does.
            total, count = (tokens * wide).sum(1), wide.sum(1).clamp(min=1e-9)
            rows.append(total / (count if mode == "mean" else count.sqrt()))
    return rows[0] if len(rows) == 1 else torch.cat(rows, 1)


def _dense(folder: Path) -> torch.nn.Module:
    import torch
    from safetensors.torch import load_file

    config = read_object(folder / "config.json")
    activation = str(config.get("activation_function", "torch.nn.modules.linear.Identity")).rsplit(".", 1)[-1]
    known = {"Tanh": torch.nn.Tanh, "Identity": torch.nn.Identity, "ReLU": torch.nn.ReLU, "GELU": torch.nn.GELU}
    if activation not in known:
        raise Unsupported(f"The activation {activation!r} of a Dense part is not known.", hint="Tanh and Identity are.")
    linear = torch.nn.Linear(int(config["in_features"]), int(config["out_features"]), bias=bool(config["bias"]))
    file = folder / "model.safetensors"
    state = (
        load_file(file)
        if file.is_file()
        else torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    )
    linear.load_state_dict({key.removeprefix("linear."): value for key, value in state.items()})
    return torch.nn.Sequential(linear, known[activation]())
