"""A PEFT adapter merged into the base model that lies inside its folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters.folder_json import read_object
from converters.model_errors import RAISED_BY_MODELS, first_line
from schemas.errors import ModelFailed, Unsupported

if TYPE_CHECKING:
    import torch

_CONFIG, _BASE = "adapter_config.json", "base"
_WHOLE = ("model.safetensors", "pytorch_model.bin")
"""Weights of a model: a folder that has them is no adapter, whatever lies beside them."""
_HEADS = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "FEATURE_EXTRACTION": "AutoModel",
}
"""PEFT's task to the class that puts the head on the base."""
_CLASSIFIERS = ("classifier.weight", "score.weight", "classifier.out_proj.weight")


class Adapter:
    """The adapter of a folder."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.folder, self.base = folder, base
        self.config = read_object(folder / _CONFIG)

    @classmethod
    def of(cls, folder: Path) -> Adapter | None:
        """Return the adapter that ``folder`` is, None when it is a model. Raises ModelFailed without its base."""
        whole = (folder / (name + end) for name in _WHOLE for end in ("", ".index.json"))
        if not (folder / _CONFIG).is_file() or any(path.exists() for path in whole):
            return None
        named = str(read_object(folder / _CONFIG).get("base_model_name_or_path") or "")
        for place in (folder / _BASE, folder / named):
            inside = place.resolve() != folder.resolve() and place.resolve().is_relative_to(folder.resolve())
            if inside and (place / "config.json").is_file():
                return cls(folder, place)
        raise ModelFailed("The adapter's base model is not inside its folder.", hint="Copy it there as base/.")

    def model_class(self, otherwise: Any) -> tuple[Any, dict[str, Any]]:
        """Return the class to load the base with and more of its settings; ``otherwise`` where PEFT names none."""
        import transformers

        mapping = self.config.get("auto_mapping")
        name = str((mapping or {}).get("base_model_class") or _HEADS.get(str(self.config.get("task_type")), ""))
        cls = getattr(transformers, name, None)
        labels = self._labels()
        return cls or otherwise, {"num_labels": labels} if labels else {}

    def merge(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return ``model`` with the adapter's difference added to its weights. Raises Unsupported without peft."""
        try:
            from peft import PeftModel
        except ImportError:
            raise Unsupported(
                "This folder holds a PEFT adapter, and the library peft is not installed here to merge it.",
                hint="Ask the operator for a torch toolchain with peft; or merge it yourself: "
                "`model.merge_and_unload().save_pretrained(FOLDER)`, and drop that.",
            ) from None
        try:
            adapted = PeftModel.from_pretrained(model, str(self.folder), local_files_only=True)
            if not hasattr(adapted.base_model, "merge_and_unload"):
                raise Unsupported(
                    f"This adapter ({self.config.get('peft_type')}) puts virtual tokens before the text and changes no "
                    "weights, so it can't be merged into its base.",
                    hint="Drop an adapter that changes weights (LoRA, IA3, OFT and their kin), or a whole model.",
                )
            merged: torch.nn.Module = adapted.merge_and_unload(safe_merge=True)
        except (AttributeError, *RAISED_BY_MODELS) as error:  # type: ignore[misc]
            raise ModelFailed(
                f"peft cannot merge this adapter into its base: {first_line(error)}.",
                hint="Check that the base in the folder is the one that the adapter was trained on.",
            ) from error
        return merged

    def own_weights(self) -> tuple[str, ...]:
        """Return the names of modules that the adapter brings whole, such as a classifier."""
        saved = self.config.get("modules_to_save")
        return tuple(str(name) for name in saved) if isinstance(saved, list) else ()

    def _labels(self) -> int | None:
        """Return the number of classes of a head that the adapter brings."""
        from safetensors import SafetensorError, safe_open

        file = self.folder / "adapter_model.safetensors"
        if not file.is_file():
            return None
        try:
            with safe_open(file, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118  a handle is no mapping
                    if key.endswith(_CLASSIFIERS):
                        return int(tensors.get_slice(key).get_shape()[0])
        except SafetensorError as error:
            raise ModelFailed(
                f"The adapter's weights cannot be read: {first_line(error)}.",
                hint="Copy adapter_model.safetensors again.",
            ) from error
        return None
