"""A Hugging Face folder as a module that takes tensors and returns tensors, sentence-transformers folders included."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters.model_errors import RAISED_BY_MODELS, first_line
from converters.torch_source import TorchSource, flat_module
from schemas.descriptor import ModelDescriptor
from schemas.errors import ModelFailed, Unsupported
from schemas.step_io import StepContext

if TYPE_CHECKING:
    import torch

SENTENCE_OUTPUT = "sentence_embedding"
"""The one output of a sentence-transformers folder: one row of numbers for each text."""
_TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_CACHES = ("past_key_values", "mems", "hidden_states", "attentions", "cross_attentions", "encoder_hidden_states")
"""Outputs that belong to training and generation, not to one forward pass."""


def load_huggingface(
    context: StepContext, folder: Path, descriptor: ModelDescriptor, attention: str | None = None
) -> TorchSource:
    """Load the folder's model with the architecture its config names; weights become float32.

    ``attention`` is transformers' attention implementation (sdpa, eager); None leaves the choice to transformers.
    Only classes of transformers itself are used, never code from the folder, and nothing is fetched.
    """
    import torch
    import transformers
    from safetensors import SafetensorError

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    modules = _sentence_modules(folder)
    weights = folder / modules[0].path if modules else folder
    cls = _model_class(weights)
    # sdpa is what transformers takes where an architecture has it; asking for it by name fails where it has not.
    options: dict[str, Any] = {"attn_implementation": attention} if attention not in (None, "sdpa") else {}
    try:
        model, loading = cls.from_pretrained(
            str(weights),
            local_files_only=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
            # Reported by us, by name; transformers prints a table and says to look above.
            ignore_mismatched_sizes=True,
            **options,
        )
    except (SafetensorError, *RAISED_BY_MODELS) as error:  # type: ignore[misc]
        raise ModelFailed(
            f"transformers cannot load this folder as {cls.__name__}: {first_line(error)}.",
            hint="Check that config.json and the weights belong together; save them again with save_pretrained.",
        ) from error
    left_out = _left_out(cls.__name__, loading)
    model.eval()
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    inputs = tuple(spec.name for spec in descriptor.inputs) or input_names(model, weights)
    outputs = tuple(spec.name for spec in descriptor.outputs)
    takes = inspect.signature(model.forward).parameters
    unknown = [name for name in inputs if name not in takes and "kwargs" not in takes]
    if unknown:
        raise ModelFailed(
            f"{cls.__name__} takes no input {unknown[0]!r}.", hint=f"It takes {', '.join(list(takes)[:8])}."
        )
    fixed: dict[str, Any] = {"return_dict": True}
    if "use_cache" in takes:
        fixed["use_cache"] = False
    pooled = bool(modules) and (not outputs or SENTENCE_OUTPUT in outputs)
    if pooled:
        model = _sentence_module(model, folder, modules)

    def call(inner: torch.nn.Module, tensors: Sequence[torch.Tensor]) -> Any:
        given = dict(zip(inputs, tensors, strict=True))
        if pooled:
            return inner(given, fixed)
        result = inner(**given, **fixed)
        return {key: value for key, value in result.items() if key not in (*_CACHES, *left_out)}

    names = outputs or ((SENTENCE_OUTPUT,) if pooled else ())
    notes = (*_dtype_notes(weights), *(f"The folder has no weights for {name}; it is left out." for name in left_out))
    return TorchSource(flat_module(model, call, names), inputs, names, notes=notes, inner=model)


def _left_out(architecture: str, loading: dict[str, Any]) -> tuple[str, ...]:
    """Return the outputs that have no weights. Raises ModelFailed when others lack: transformers would draw them.

    A pooler is often missing, and then nobody uses its output.
    """
    missing = sorted(str(key) for key in loading.get("missing_keys", ()))
    needed = [key for key in missing if "pooler" not in key.split(".")]
    mismatched = sorted(
        str(item[0] if isinstance(item, tuple) else item) for item in loading.get("mismatched_keys", ())
    )
    if needed or mismatched:
        bad = [*needed, *mismatched]
        raise ModelFailed(
            f"The weights do not fit {architecture}: {len(bad)} tensors are missing or of another shape, "
            f"for example {bad[0]}.",
            hint="Check that config.json and the weights belong together; save them again with save_pretrained.",
        )
    return ("pooler_output",) if missing else ()


def _model_class(folder: Path) -> Any:
    import transformers

    config = _read_json(folder / "config.json")
    architectures = config.get("architectures") or []
    name = str(architectures[0]) if architectures else "AutoModel"
    cls = getattr(transformers, name, None) or _inner_class(name, str(config.get("model_type", "")))
    if cls is None or not (name == "AutoModel" or issubclass(cls, transformers.PreTrainedModel)):
        raise Unsupported(
            f"transformers {transformers.__version__} has no architecture {name}.",
            hint="Models that bring their own code are not run; export the model to ONNX or TorchScript yourself.",
        )
    return cls


def _inner_class(name: str, model_type: str) -> Any | None:
    """Return a part of an architecture that transformers has and does not export, such as WhisperEncoder."""
    import importlib

    import transformers
    from transformers.models.auto.configuration_auto import model_type_to_module_name

    if model_type not in transformers.CONFIG_MAPPING or not name.isidentifier():
        return None
    module = model_type_to_module_name(model_type)
    try:
        inner = importlib.import_module(f"transformers.models.{module}.modeling_{module}")
    except ImportError:
        return None
    cls = getattr(inner, name, None)
    return cls if inspect.isclass(cls) else None


def input_names(model: Any, folder: Path) -> tuple[str, ...]:
    """Return the inputs of one forward pass: what the tokenizer makes of a text, or the model's main input."""
    takes = inspect.signature(model.forward).parameters
    main = str(getattr(model, "main_input_name", "input_ids"))
    if main != "input_ids":
        return tuple(name for name in (main,) if name in takes)
    tokenizer = folder / "tokenizer_config.json"
    declared = _read_json(tokenizer).get("model_input_names") if tokenizer.is_file() else None
    names = tuple(declared) if declared else _TEXT_INPUTS
    if takes_pairs(model.config):
        names = (*names, "pixel_values")
    if "token_type_ids" in names and getattr(model.config, "type_vocab_size", 0) < 2:
        names = tuple(name for name in names if name != "token_type_ids")
    return tuple(name for name in names if name in takes)


def takes_pairs(config: Any) -> bool:
    """Whether a model compares texts with images, such as CLIP: it has a tower for each and needs both."""
    return getattr(config, "text_config", None) is not None and getattr(config, "vision_config", None) is not None


def _dtype_notes(folder: Path) -> tuple[str, ...]:
    config = _read_json(folder / "config.json")
    stored = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    return () if stored == "float32" else (f"The weights are stored as {stored} and run as float32 on the CPU.",)


class _SentencePart:
    """One entry of modules.json."""

    def __init__(self, kind: str, path: str) -> None:
        self.kind, self.path = kind, path


def _sentence_modules(folder: Path) -> list[_SentencePart]:
    """Return the parts of a sentence-transformers folder in order, the transformer first; [] for any other folder."""
    file = folder / "modules.json"
    if not file.is_file():
        return []
    parts = [
        _SentencePart(str(item.get("type", "")).rsplit(".", 1)[-1], str(item.get("path", "")))
        for item in _read_json_list(file)
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


def _sentence_module(model: torch.nn.Module, folder: Path, parts: Sequence[_SentencePart]) -> torch.nn.Module:
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
    config = _read_json(folder / "config.json")
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

    config = _read_json(folder / "config.json")
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


def _read_json(file: Path) -> dict[str, Any]:
    value = _parse_json(file)
    if not isinstance(value, dict):
        raise ModelFailed(f"{file.name} is not a JSON object.", hint="Save the model again with save_pretrained.")
    return value


def _read_json_list(file: Path) -> list[dict[str, Any]]:
    value = _parse_json(file)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ModelFailed(f"{file.name} is not a list of JSON objects.", hint="Save the model again.")
    return value


def _parse_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelFailed(
            f"The folder has no {file.name}.", hint="Save the model again with save_pretrained."
        ) from None
    except ValueError as error:
        raise ModelFailed(
            f"{file.name} is not valid JSON: {first_line(error)}.", hint="Save the model again."
        ) from error
