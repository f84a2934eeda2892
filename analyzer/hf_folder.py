"""Read a Hugging Face folder: config, weights, tokenizer, labels, sentence-transformers parts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from analyzer.draft import Draft, clean, cut_short, listing
from analyzer.exported_program import at, load_json, rows
from analyzer.formats import Seen, recognise
from analyzer.hf_architecture import task_of
from analyzer.licence import read_licence
from analyzer.peft_adapter import CONFIG as ADAPTER_CONFIG
from analyzer.peft_adapter import base_folder, is_adapter, read_adapter
from analyzer.safetensors_header import read_header
from analyzer.torch_archive import saved_tensors
from schemas.descriptor import Format
from schemas.errors import LimitExceeded, ModelFailed, Unsupported

MAX_JSON_BYTES = 32 << 20
MAX_SHARDS = 2000
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_VARIANT = re.compile(r"(model|pytorch_model)\.[A-Za-z0-9_]+(-\d{5}-of-\d{5})?\.(safetensors|bin)")
"""As transformers names the files of save_pretrained(variant='fp16')."""
_FOREIGN = {
    "tf_model.h5": "TensorFlow", "flax_model.msgpack": "Flax", "rust_model.ot": "Rust",
    "model.ckpt.index": "TensorFlow",
}  # fmt: skip
_MEMBERS = ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "merges.txt",
            "sentencepiece.bpe.model", "spiece.model", "tokenizer.model", "special_tokens_map.json",
            "preprocessor_config.json", "processor_config.json", "generation_config.json", "modules.json",
            "README.md")  # fmt: skip


def read_json(path: Path, what: str) -> Any:
    """Return a folder's JSON file. Raises ModelFailed when it is broken, LimitExceeded when it is huge."""
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise LimitExceeded(
            f"The {what} of this folder has {size} bytes, far more than any settings.",
            hint="Save the model again with save_pretrained.",
            limit=MAX_JSON_BYTES,
            actual=size,
        )
    if path.is_symlink():
        raise ModelFailed(f"The {what} of this folder is a link.", hint="Copy the folder with `cp -rL`.")
    return load_json(path.read_bytes(), what)


def transformer_folder(folder: Path) -> Path | None:
    """Return where the transformer's config.json is: the folder, or the first part of a sentence-transformers one."""
    if _is_config(folder / "config.json"):
        return folder
    modules = folder / "modules.json"
    if not modules.is_file():
        return None
    first = at(read_json(modules, "modules.json"), 0, "path")
    if isinstance(first, str) and re.fullmatch(r"[\w.-]{1,100}", first) and ".." not in first:
        inner = folder / first
        if _is_config(inner / "config.json"):
            return inner
    return None


def _is_config(path: Path) -> bool:
    if not path.is_file():
        return False
    config = read_json(path, "config.json")
    return isinstance(config, dict) and ("model_type" in config or "architectures" in config)


def read_huggingface(draft: Draft, seen: Seen) -> None:
    """Fill ``draft`` from the folder ``draft.path``; the weights' headers are read, not their bytes."""
    folder = transformer_folder(draft.path)
    files: tuple[str, ...] = ()
    if is_adapter(draft.path, WEIGHTS):
        adapter = read_json(draft.path / ADAPTER_CONFIG, ADAPTER_CONFIG)
        files = read_adapter(draft, draft.path, adapter)
        folder = base_folder(draft.path, adapter)
    if folder is None:
        raise ModelFailed("This folder has no usable config.json.", hint="Save the model again with save_pretrained.")
    config = read_json(folder / "config.json", "config.json")
    version = at(config, "transformers_version")
    draft.know(framework="transformers", producer="transformers")
    draft.know(framework_version=version if isinstance(version, str) else None)
    read_settings(draft, folder, config)
    _sentence_parts(draft)
    names = [name for name in _MEMBERS if (draft.path / name).is_file()]
    draft.know(files=tuple(names))
    auto_map = at(config, "auto_map")
    if isinstance(auto_map, dict) and auto_map:
        draft.note(
            "config.json asks for Python code from the folder (auto_map), which is not run; transformers' own class is."
        )
    draft.know(files=(*names, *files, *_weights(draft, folder)))


def read_settings(draft: Draft, folder: Path, config: Any) -> str:
    """Fill what config.json and its neighbours say of task, labels, tokenizer, licence; return the architecture."""
    named = at(config, "architectures")
    architectures = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    architecture = architectures[0] if architectures else ""
    told = at(config, "model_type")
    model_type = told if isinstance(told, str) else ""
    task = task_of(architecture, model_type)
    if task == "text2text-generation" and at(config, "vision_config") is not None:
        task = "image-text-to-text"
    draft.know(architecture=architecture or model_type, task=task)
    longest = at(config, "max_position_embeddings")
    if isinstance(longest, int) and 0 < longest <= 1 << 40 and draft.facts.get("task") == "text-generation":
        draft.know(context_length=longest)
    _labels(draft, config)
    _tokenizer(draft, folder)
    read_licence(draft, draft.path)
    return architecture


def _labels(draft: Draft, config: Any) -> None:
    table = at(config, "id2label")
    if not isinstance(table, dict) or not 0 < len(table) <= 100_000:
        return
    labels = [table.get(str(index)) for index in range(len(table))]
    if all(isinstance(label, str) for label in labels):
        texts = [str(label) for label in labels]
        if not all(re.fullmatch(r"LABEL_\d+", label) for label in texts):
            draft.know(labels=tuple(texts))


def _tokenizer(draft: Draft, folder: Path) -> None:
    for home in dict.fromkeys((folder, draft.path)):
        path = home / "tokenizer_config.json"
        if path.is_file():
            name = at(read_json(path, "tokenizer_config.json"), "tokenizer_class")
            named = name if isinstance(name, str) else None
            draft.know(tokenizer=named or ("PreTrainedTokenizerFast" if (home / "tokenizer.json").is_file() else None))
            return
        if (home / "tokenizer.json").is_file():
            draft.know(tokenizer="PreTrainedTokenizerFast")
            return


def _sentence_parts(draft: Draft) -> None:
    path = draft.path / "modules.json"
    if not path.is_file():
        return
    parts = [str(row.get("type", "")).rpartition(".")[2] for row in rows(read_json(path, "modules.json"))]
    if parts:
        draft.know(producer="sentence-transformers", task="feature-extraction")
        draft.note(f"A sentence-transformers folder: {' → '.join(clean(part, 40) for part in parts[:10])}.")


def _weights(draft: Draft, folder: Path) -> tuple[str, ...]:
    """Check that all weights are here and whole, and count them; return their file names."""
    for name in WEIGHTS:
        index, single = folder / f"{name}.index.json", folder / name
        if index.is_file():
            shards = _shards(index)
            missing = [shard for shard in shards if not (folder / shard).is_file()]
            if missing:
                raise ModelFailed(
                    f"This folder lacks {len(missing)} of the {len(shards)} weight files that {index.name} names: "
                    f"{listing(missing)}.",
                    hint="Copy the missing files too and drop the folder again.",
                )
            _count(draft, folder, shards)
            return (index.name, *shards)
        if single.is_file():
            _count(draft, folder, [name])
            return (name,)
    others = [(path, framework) for path, framework in _FOREIGN.items() if (folder / path).is_file()]
    if others:
        raise Unsupported(
            f"The weights of this folder are in {others[0][1]}'s format ({others[0][0]}) only.",
            hint="Load it in transformers 4 with `from_tf=True` or `from_flax=True`, save_pretrained, and drop that.",
        )
    if variants := [name for path in folder.iterdir() if _VARIANT.fullmatch(name := path.name)]:
        raise ModelFailed(
            f"The weights of this folder are a variant that nothing names: {listing(sorted(variants))}.",
            hint="Load it with `from_pretrained(folder, variant='fp16')` or whatever it is called, and drop what "
            "save_pretrained writes; one file without shards can be renamed to model.safetensors.",
        )
    raise ModelFailed(
        "This Hugging Face folder has a config.json and no weights (looked for model.safetensors, pytorch_model.bin "
        "and their index files).",
        hint="Copy the weights into it, or save the model again with save_pretrained.",
    )


def _shards(index: Path) -> list[str]:
    table = at(read_json(index, index.name), "weight_map")
    names = {name for name in table.values() if isinstance(name, str)} if isinstance(table, dict) else set()
    if not names or len(names) > MAX_SHARDS:
        raise ModelFailed(f"{index.name} names no weight files.", hint="Save the model again with save_pretrained.")
    outside = [name for name in names if not re.fullmatch(r"[\w.+-]{1,200}", name) or name.startswith(".")]
    if outside:
        raise ModelFailed(
            f"{index.name} names a file that is no plain name: {clean(min(outside), 120)!r}.",
            hint="Save the model again with save_pretrained.",
        )
    return sorted(names)


def _count(draft: Draft, folder: Path, names: list[str]) -> None:
    counted: list[tuple[str, int, int]] = []
    for name in names:
        path = folder / name
        seen = recognise(path)
        if seen.format is Format.SAFETENSORS:
            try:
                counted.extend((t.dtype, t.count, t.size_bytes) for t in read_header(path)[0])
            except ModelFailed as error:
                raise ModelFailed(f"{name}: {error.args[0]}", hint=error.hint) from None
        elif seen.kind == "lfs-pointer":
            raise ModelFailed(
                f"The weights {name} are a Git LFS pointer, a few lines of text that stand for the file.",
                hint="Run `git lfs pull` in the folder and drop it again.",
            )
        elif seen.kind == "cut-zip":
            raise cut_short(seen.detail, f"the central directory of {name} is missing")
        elif seen.kind in ("torch-zip", "torch-legacy"):
            counted.extend((t.dtype, t.count, t.size_bytes) for t in saved_tensors(path, seen))
        else:
            raise ModelFailed(
                f"The weights {name} are no safetensors or PyTorch file (they are: {seen.kind}).",
                hint="Copy the file again.",
            )
    draft.parameters(counted)
