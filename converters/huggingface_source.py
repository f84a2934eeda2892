"""A Hugging Face folder as a module that takes tensors and returns tensors, sentence-transformers folders included."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters import fused_attention
from converters.folder_json import read_object
from converters.huggingface_inputs import DECODER_IDS, input_names
from converters.model_errors import RAISED_BY_MODELS, first_line
from converters.peft_adapter import Adapter
from converters.sentence_modules import SENTENCE_OUTPUT, SentencePart, sentence_module, sentence_parts
from converters.torch_source import TorchSource, flat_module
from schemas.descriptor import ModelDescriptor
from schemas.errors import ModelFailed, Unsupported
from schemas.step_io import StepContext

if TYPE_CHECKING:
    import torch

_CACHES = (
    "past_key_values", "mems", "hidden_states", "attentions", "cross_attentions", "encoder_hidden_states",
    "encoder_attentions", "decoder_hidden_states", "decoder_attentions", "loss",
)  # fmt: skip
"""Outputs that belong to training and generation, not to one forward pass."""


def load_huggingface(
    context: StepContext, folder: Path, descriptor: ModelDescriptor, attention: str | None = None
) -> TorchSource:
    """Load the folder's model with the architecture its config names; weights become float32.

    ``attention`` is transformers' attention implementation (sdpa, eager), or fused, which exports as one operator; None
    leaves the choice to transformers.
    Only classes of transformers itself are used, never code from the folder, and nothing is fetched.
    """
    import torch
    import transformers
    from safetensors import SafetensorError

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    modules = sentence_parts(folder)
    adapter = Adapter.of(folder)
    weights = adapter.base if adapter else folder / modules[0].path if modules else folder
    cls = _model_class(weights)
    # sdpa is what transformers takes where an architecture has it; asking for it by name fails where it has not.
    options: dict[str, Any] = {"attn_implementation": attention} if attention not in (None, "sdpa") else {}
    if attention == "fused":
        options = {"attn_implementation": fused_attention.register()}
    if adapter:
        cls, more = adapter.model_class(cls)
        options = {**options, **more}
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
    left_out = _left_out(cls.__name__, loading, brought=adapter.own_weights() if adapter else ())
    if adapter:
        model = adapter.merge(model)
    notes = (*_dtype_notes(weights), *(f"The folder has no weights for {name}; it is left out." for name in left_out))
    return source_from(model, weights, descriptor, notes=notes, left_out=left_out, modules=modules, root=folder)


def source_from(
    model: Any,
    weights: Path,
    descriptor: ModelDescriptor,
    *,
    notes: Sequence[str] = (),
    left_out: Sequence[str] = (),
    modules: Sequence[SentencePart] = (),
    root: Path | None = None,
) -> TorchSource:
    """Return one forward pass of a loaded transformers model as a source, without a key-value cache.

    ``weights`` is the folder with its tokenizer's settings; ``modules`` are a sentence-transformers folder's parts and
    ``root`` that folder. Outputs in ``left_out`` are not given.
    """
    model.eval()
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    inputs = tuple(spec.name for spec in descriptor.inputs) or input_names(model, weights)
    outputs = tuple(spec.name for spec in descriptor.outputs)
    takes = inspect.signature(model.forward).parameters
    unknown = [name for name in inputs if name not in takes and "kwargs" not in takes]
    if unknown:
        raise ModelFailed(
            f"{type(model).__name__} takes no input {unknown[0]!r}.", hint=f"It takes {', '.join(list(takes)[:8])}."
        )
    fixed: dict[str, Any] = {"return_dict": True}
    if "use_cache" in takes:
        fixed["use_cache"] = False
    pooled = bool(modules) and (not outputs or SENTENCE_OUTPUT in outputs)
    loops = _loop_notes(model, inputs)
    if pooled:
        model = sentence_module(model, root or weights, modules)

    def call(inner: torch.nn.Module, tensors: Sequence[torch.Tensor]) -> Any:
        given = dict(zip(inputs, tensors, strict=True))
        if pooled:
            return inner(given, fixed)
        result = inner(**given, **fixed)
        return {key: value for key, value in result.items() if key not in (*_CACHES, *left_out)}

    names = outputs or ((SENTENCE_OUTPUT,) if pooled else ())
    return TorchSource(flat_module(model, call, names), inputs, names, notes=(*notes, *loops), inner=model)


def _loop_notes(model: Any, inputs: Sequence[str]) -> tuple[str, ...]:
    if DECODER_IDS in inputs:
        return ("One forward pass of encoder and decoder; the loop that generates token by token stands outside.",)
    if type(model).__name__.endswith(("ForCausalLM", "LMHeadModel")):
        return ("One forward pass without a key-value cache; the loop that generates stands outside.",)
    return ()


def _left_out(architecture: str, loading: dict[str, Any], brought: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the outputs that have no weights. Raises ModelFailed when others lack: transformers would draw them.

    A pooler is often missing, and then nobody uses its output. Modules in ``brought`` come with an adapter.
    """
    keys = sorted(str(key) for key in loading.get("missing_keys", ()))
    missing = [key for key in keys if not set(brought).intersection(key.split("."))]
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

    config = read_object(folder / "config.json")
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


def _dtype_notes(folder: Path) -> tuple[str, ...]:
    config = read_object(folder / "config.json")
    stored = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    return () if stored == "float32" else (f"The weights are stored as {stored} and run as float32 on the CPU.",)
