"""Inputs to run a model on: random ones by dtype and role, a person's samples, built-in sentences."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from converters.arrays import Array, Arrays, cast, kind, load, numpy_dtype
from converters.batching import fixed_rows
from converters.domain import ANYTHING, Domain
from converters.model_errors import RAISED_BY_MODELS
from converters.sentences import SENTENCES
from converters.whole_sample import is_whole
from schemas.descriptor import BATCH_AXIS, ModelDescriptor, TensorSpec
from schemas.errors import InvalidDocument
from schemas.step_io import StepContext

LABELS = "labels"
"""Key of a samples file that holds the right answers."""
TRACE_BATCH = 2
"""Rows that exporters trace with: at 1 they freeze broadcasts silently."""
ROWS_AXIS = "rows"
"""Name of a leading dynamic axis whose rows are not independent."""
SEQUENCE_AXIS = "sequence"

_SIZES = {BATCH_AXIS: TRACE_BATCH, ROWS_AXIS: 2, SEQUENCE_AXIS: 16, "height": 224, "width": 224}
_DEFAULT_SIZE = 16
_IDS_LIMIT = 100
"""Bound of integers when the model has no table that tells: most vocabularies are larger, most enumerations smaller."""
_GAPS = 0.25
"""Share of rows with a missing value, where the model takes some."""
_NEAR = 0.1
"""Distance from remembered rows, in their standard deviation."""
_MASKS = ("mask",)
_ZEROS = ("token_type_ids", "segment_ids", "past_key_values_length")
_TEXT_INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids", "position_ids", "decoder_input_ids"})


def axes_of(specs: Sequence[TensorSpec]) -> tuple[str, ...]:
    """Return the names of the dynamic axes of ``specs``, each once, in order."""
    return tuple(dict.fromkeys(dim for spec in specs for dim in spec.shape if isinstance(dim, str)))


def example_sizes(descriptor: ModelDescriptor) -> dict[str, int]:
    """Return a size for each dynamic input axis: the one the probe saw run, else a usual one."""
    return {axis: descriptor.example_axes.get(axis, usual_size(axis)) for axis in axes_of(descriptor.inputs)}


def usual_size(axis: str) -> int:
    """Return the size to try first for an axis of that name."""
    name = axis.lower()
    if name in _SIZES:
        return _SIZES[name]
    if "batch" in name:
        return TRACE_BATCH
    return _DEFAULT_SIZE


def random_feeds(
    specs: Sequence[TensorSpec],
    sizes: Mapping[str, int],
    rng: np.random.Generator,
    domains: Mapping[str, Domain] | None = None,
) -> Arrays:
    """Return one array per input, dynamic axes at ``sizes``. The same seed gives the same arrays."""
    feeds: Arrays = {}
    for spec in specs:
        shape = tuple(dim if isinstance(dim, int) else sizes[dim] for dim in spec.shape)
        feeds[spec.name] = _draw(spec, shape, rng, (domains or {}).get(spec.name, ANYTHING))
    return feeds


def _draw(spec: TensorSpec, shape: tuple[int, ...], rng: np.random.Generator, domain: Domain) -> Array:
    name, dtype = spec.name.lower(), numpy_dtype(spec.dtype)
    if domain.value is not None:
        return np.resize(domain.value, shape).astype(dtype)
    if domain.choices is not None and len(domain.choices):
        return np.asarray(rng.choice(domain.choices, size=shape)).astype(dtype)
    sort = kind(spec.dtype)
    if sort == "string":
        words = np.array(sorted({word for sentence in SENTENCES for word in sentence.split()}))
        return np.asarray(rng.choice(words, size=shape)).astype(np.str_)
    if any(word in name for word in _MASKS):
        return _mask(shape, rng).astype(dtype)
    if sort == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    if sort == "integer":
        return _integers(spec, name, shape, rng, domain)
    values = rng.standard_normal(shape)
    if domain.centre is not None and domain.spread is not None:
        values = values * domain.spread + domain.centre
    if domain.rows is not None and len(shape) == 2 and len(domain.rows):
        near = domain.rows[rng.integers(0, len(domain.rows), shape[0])]
        values = near + rng.standard_normal(shape) * _NEAR * domain.rows.std(axis=0)
    for feature, choices in enumerate(domain.columns[: shape[-1] if shape else 0]):
        if choices is not None and len(choices):
            values[..., feature] = rng.choice(choices, size=shape[:-1])
    if domain.positive:
        values = np.abs(values) + 1e-3
    if domain.missing and values.ndim == 2 and values.size:
        # One value in every fourth row or so: what a gap does is to be seen beside what rows without one give.
        gaps = np.flatnonzero(rng.random(len(values)) < _GAPS)
        values[gaps, rng.integers(0, values.shape[1], len(gaps))] = np.nan
    return values.astype(dtype)


def _integers(spec: TensorSpec, name: str, shape: tuple[int, ...], rng: np.random.Generator, domain: Domain) -> Array:
    dtype = numpy_dtype(spec.dtype)
    if name in _ZEROS:
        return np.zeros(shape, dtype)
    if "position" in name and shape:
        return np.broadcast_to(np.arange(shape[-1]), shape).astype(dtype)
    if spec.dtype == "uint8" and domain.limit is None:
        return rng.integers(0, 256, shape).astype(dtype)
    limit = min(domain.limit or _IDS_LIMIT, int(np.iinfo(dtype).max))
    drawn = rng.integers(0, max(limit, 1), shape).astype(dtype)
    if name == "bbox" and shape and shape[-1] == 4:
        # Left and top come before right and bottom: models look their differences up in a table.
        drawn = np.concatenate(
            [np.minimum(drawn[..., :2], drawn[..., 2:]), np.maximum(drawn[..., :2], drawn[..., 2:])], -1
        )
    if domain.last is not None and shape:
        drawn = np.where(drawn == domain.last, max(domain.last - 1, 0), drawn).astype(dtype)
        drawn[..., -1] = domain.last
    return drawn


def _mask(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Return ones with a masked tail of random length in every row but the first; no row is masked wholly."""
    mask = np.ones(shape)
    if len(shape) == 2 and shape[1] > 1:
        for row in range(1, shape[0]):
            mask[row, int(rng.integers(max(1, shape[1] // 2), shape[1] + 1)) :] = 0
    return mask


def sidecar_samples(context: StepContext, specs: Sequence[TensorSpec], max_rows: int) -> tuple[Arrays, Array | None]:
    """Return the sidecar's samples by input name, cut to ``max_rows`` rows, and their labels; ({}, None) without any.

    ``specs`` may be empty while the inputs are not known; then nothing is cast or checked. Arrays without rows in
    common that fit the inputs as they are come back whole. Raises InvalidDocument when an input has no array or the
    arrays do not fit together.
    """
    sidecar = context.request.sidecar
    if sidecar is None or sidecar.samples is None or not context.has("code"):
        return {}, None
    path = context.input("code") / sidecar.samples
    if not path.is_file():
        raise InvalidDocument(f"The sidecar names samples in {sidecar.samples}, and there is no such file.")
    arrays = load(path)
    labels = arrays.pop(LABELS, None)
    if specs and is_whole(specs, arrays):
        return {spec.name: cast(arrays[spec.name], spec) for spec in specs}, None
    # A model that takes so many rows at once takes no fewer.
    max_rows = max(max_rows, fixed_rows(specs) or 0)
    arrays = {name: array[:max_rows] for name, array in arrays.items() if array.ndim}
    if not specs:
        return arrays, labels[:max_rows] if labels is not None and labels.ndim else None
    missing = [spec.name for spec in specs if spec.name not in arrays]
    if missing:
        raise InvalidDocument(
            f"The samples in {sidecar.samples} have no array for input {missing[0]!r}; they have "
            f"{', '.join(sorted(arrays)[:10]) or 'none'}.",
            hint="Write one array for each input, named as the input is, rows first.",
        )
    samples = {spec.name: cast(arrays[spec.name], spec) for spec in specs}
    counts = {name: len(array) for name, array in samples.items()}
    if labels is not None and labels.ndim:
        counts[LABELS] = len(labels[:max_rows])
    if len(set(counts.values())) > 1 or not min(counts.values(), default=0):
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise InvalidDocument(
            f"The samples in {sidecar.samples} have different numbers of rows, or none: {listed}.",
            hint="Every array needs one row for each sample.",
        )
    for spec in specs:
        _check_shape(spec, samples[spec.name], sidecar.samples)
    return samples, labels[:max_rows] if labels is not None and labels.ndim else None


def _check_shape(spec: TensorSpec, array: Array, file: str) -> None:
    fits = len(spec.shape) == array.ndim and all(
        isinstance(dim, str) or axis == 0 or dim == size
        for axis, (dim, size) in enumerate(zip(spec.shape, array.shape, strict=True))
    )
    if not fits:
        raise InvalidDocument(
            f"The samples for input {spec.name!r} in {file} have shape {list(array.shape)}, and the model takes "
            f"{list(spec.shape)}.",
            hint="Give the samples the input's own shape, rows first.",
        )


def sizes_of(specs: Sequence[TensorSpec], feeds: Mapping[str, Array]) -> dict[str, int]:
    """Return dynamic axis name to its size in ``feeds``."""
    sizes: dict[str, int] = {}
    for spec in specs:
        for dim, size in zip(spec.shape, feeds[spec.name].shape, strict=True):
            if isinstance(dim, str):
                sizes[dim] = int(size)
    return sizes


def takes_text(specs: Sequence[TensorSpec]) -> bool:
    """Whether the inputs are those that a tokenizer makes of a text."""
    names = {spec.name for spec in specs}
    shaped = all(len(spec.shape) == 2 and kind(spec.dtype) in ("integer", "float", "bool") for spec in specs)
    return "input_ids" in names and names <= _TEXT_INPUTS and shaped


def sentence_feeds(folder: Path, specs: Sequence[TensorSpec], max_length: int = 128) -> list[Arrays]:
    """Return batches of the built-in sentences through the folder's own tokenizer, each padded to another length.

    [] when the folder has no tokenizer that can be read, or the inputs are not a tokenizer's. Fixed sequence axes are
    padded to their size; a fixed batch axis gives batches of that size.
    """
    if not folder.is_dir() or not takes_text(specs):
        return []
    rows = _tokenize(folder)
    if not rows:
        return []
    first = next(spec for spec in specs if spec.name == "input_ids")
    batch, length = first.shape
    fixed = length if isinstance(length, int) else None
    rows_per_case = batch if isinstance(batch, int) else 8
    pad = _setting(folder, "pad_token_id") or 0
    given = _setting(folder, "decoder_start_token_id")
    start = pad if given is None else given
    # Some models make up positions that they have no weights for, and no graph can follow them there.
    max_length = min(max_length, _setting(folder, "max_position_embeddings") or max_length)
    # Sorted by length, so that the batches are padded to lengths of their own.
    rows.sort(key=lambda row: len(row[0]))
    cases = []
    for at in range(0, len(rows) - rows_per_case + 1, rows_per_case):
        part = rows[at : at + rows_per_case]
        size = fixed or min(max(len(ids) for ids, _ in part), max_length)
        cases.append({spec.name: _padded(spec, part, size, pad, start) for spec in specs})
        if len(cases) == 4:
            break
    return cases


def _padded(spec: TensorSpec, rows: Sequence[tuple[list[int], list[int]]], size: int, pad: int, start: int) -> Array:
    array = np.zeros((len(rows), size), numpy_dtype(spec.dtype))
    for at, (ids, types) in enumerate(rows):
        used = min(len(ids), size)
        if spec.name == "input_ids":
            array[at, :] = pad
            array[at, :used] = ids[:used]
        elif spec.name == "decoder_input_ids":
            # The same text again, moved by one, as it is when a decoder is trained.
            array[at, :] = pad
            array[at, :used] = [start, *ids][:used]
        elif spec.name == "attention_mask":
            array[at, :used] = 1
        elif spec.name == "token_type_ids":
            array[at, :used] = types[:used]
        else:
            array[at, :] = np.arange(size)
    return array


def _tokenize(folder: Path) -> list[tuple[list[int], list[int]]]:
    """Return ids and segment ids of every sentence. The tokenizer's file comes first: AutoTokenizer swaps classes."""
    with _Unreadable():
        if (folder / "tokenizer.json").is_file():
            from tokenizers import Tokenizer

            fast = Tokenizer.from_file(str(folder / "tokenizer.json"))
            fast.no_padding()
            fast.no_truncation()
            encoded = [fast.encode(sentence) for sentence in SENTENCES]
            return [(list(e.ids), list(e.type_ids)) for e in encoded if e.ids]
        if not (folder / "tokenizer_config.json").is_file() and not (folder / "vocab.txt").is_file():
            return []
        from transformers import AutoTokenizer

        slow: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        ids = [list(slow(sentence)["input_ids"]) for sentence in SENTENCES]
        return [(row, [0] * len(row)) for row in ids if row]
    return []


class _Unreadable:
    """Swallow what a tokenizer that cannot be read raises: random ids are left, and reports say so by their source.

    The tokenizers library raises Exception itself, no class of its own; nothing derived from it is meant.
    """

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        return kind is not None and (kind is Exception or issubclass(kind, RAISED_BY_MODELS))


def _setting(folder: Path, key: str) -> int | None:
    """Return a number of zero or more that the folder's configuration gives under ``key``."""
    for name in ("config.json", "generation_config.json"):
        file = folder / name
        if file.is_file():
            try:
                value = json.loads(file.read_text(encoding="utf-8")).get(key)
            except (ValueError, AttributeError):
                continue
            if isinstance(value, int) and value >= 0:
                return value
    return None
