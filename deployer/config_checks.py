"""What is wrong with an entry and Triton's own parser lets pass, and what it would only say at load time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deployer.backends import BACKENDS, Backend
from deployer.config_text import CONFIG_FILE, parse_config
from schemas.errors import ModeliumError

_BY_NAME = {backend.name: backend for backend in BACKENDS.values()}
_KIND_GPU = 1
"""ModelInstanceGroup.KIND_GPU."""


def check_entry(entry: Path) -> tuple[str, ...]:
    """Return what is wrong with the entry folder ``entry``; () when a server may load it. Reads no model bytes."""
    return tuple(_entry(entry, entry.name))


def require_entry(entry: Path, name: str) -> None:
    """Raise ModeliumError, our fault, when the staged folder ``entry`` may not be published under ``name``."""
    problems = tuple(_entry(entry, name))
    if problems:
        raise ModeliumError(f"The entry of {name} was not published: {' '.join(problems)}"[:2000])


def check_config(config: Any) -> tuple[str, ...]:
    """Return what is wrong with a parsed ModelConfig by itself."""
    return tuple(_config(config))


def _entry(entry: Path, name: str) -> Iterator[str]:
    path = entry / CONFIG_FILE
    if not path.is_file():
        yield f"There is no {CONFIG_FILE}."
        return
    config = parse_config(path.read_text(encoding="utf-8"))
    if config.name != name:
        yield f"The configuration is of {config.name!r}, the folder of {name!r}."
    yield from _config(config)
    versions = list(config.version_policy.specific.versions)
    if not versions:
        yield "No version is named."
    backend = _BY_NAME.get(config.backend)
    if backend is not None:
        needed = [backend.model_file]
        if backend.data_suffix:
            needed.append(Path(backend.model_file).with_suffix(backend.data_suffix).name)
        for version in versions:
            for file in needed:
                if not (entry / str(version) / file).is_file():
                    yield f"Version {version} has no {file}."
    for output in config.output:
        if output.label_filename and not (entry / output.label_filename).is_file():
            yield f"Output {output.name!r} names the label file {output.label_filename!r}, which is not there."


def _config(config: Any) -> Iterator[str]:
    backend = _BY_NAME.get(config.backend)
    if backend is None:
        yield f"The backend is {config.backend!r}, none of {', '.join(_BY_NAME)}."
    else:
        yield from _backend(config, backend)
    if config.max_batch_size < 0:
        yield f"max_batch_size is {config.max_batch_size}."
    for kind, tensors in (("input", config.input), ("output", config.output)):
        names = [tensor.name for tensor in tensors]
        if not names:
            yield f"There is no {kind}."
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield f"{kind.capitalize()} {name!r} is declared {names.count(name)} times."
        for tensor in tensors:
            yield from _tensor(kind, tensor, batched=config.max_batch_size > 0)
    for group in config.instance_group:
        if group.count <= 0:
            yield f"An instance group has count {group.count}."
    if config.HasField("dynamic_batching"):
        yield from _batching(config)
    inputs = {tensor.name for tensor in config.input}
    for warm_up in config.model_warmup:
        if set(warm_up.inputs) != inputs:
            yield f"Warm-up {warm_up.name!r} does not give the model's inputs."
        if any(dim < 1 for item in warm_up.inputs.values() for dim in item.dims):
            yield f"Warm-up {warm_up.name!r} has an axis without a size."
        if not 1 <= warm_up.batch_size <= max(config.max_batch_size, 1):
            yield f"Warm-up {warm_up.name!r} has batch size {warm_up.batch_size}."


def _backend(config: Any, backend: Backend) -> Iterator[str]:
    """Yield what ``backend`` would refuse, or take for something else."""
    if config.platform and config.platform != backend.platform:
        yield f"The platform {config.platform!r} is not one of the {backend.name} backend."
    if (config.default_model_filename or backend.model_file) != backend.model_file:
        yield f"The model file is {config.default_model_filename!r}, not {backend.model_file!r}."
    if config.max_batch_size > 0 and not backend.batches_any_size:
        yield f"The {backend.name} backend would run batches of {config.max_batch_size} and of no other size."
    for key in sorted(set(config.parameters) - backend.parameters):
        yield f"The parameter {key!r} is none that Modelium gives the {backend.name} backend."
    for group in config.instance_group:
        if group.kind == _KIND_GPU and not backend.gpu:
            yield f"The {backend.name} backend does not run on a GPU."
        if group.kind != _KIND_GPU and not backend.cpu:
            yield f"The {backend.name} backend runs on GPUs only."
    if backend.by_position:
        for kind, tensors in (("output", config.output), ("input", config.input)):
            yield from _positions(kind, [tensor.name for tensor in tensors])


def _positions(kind: str, names: list[str]) -> Iterator[str]:
    """Yield names that libtorch's backend would read as positions other than their own.

    Where all names of a kind are ``<anything>__<digits>``, the digits decide; where one is not, the order does. Names
    of inputs that are arguments of ``forward`` come before both, and a config cannot tell: such names are refused too.
    """
    parts = [name.partition("__") for name in names]
    if not names or not all(found and (not index or index.isdecimal()) for _, found, index in parts):
        return
    for position, (name, (_, _, index)) in enumerate(zip(names, parts, strict=True)):
        if int(index or 0) != position:
            yield f"{kind.capitalize()} {name!r} is number {position}, and Triton would take it for number {index}."


def _tensor(kind: str, tensor: Any, *, batched: bool) -> Iterator[str]:
    if not tensor.name:
        yield f"An {kind} has no name."
    if not tensor.data_type:
        yield f"{kind.capitalize()} {tensor.name!r} has no data type."
    if not tensor.dims or any(dim == 0 or dim < -1 for dim in tensor.dims):
        yield f"{kind.capitalize()} {tensor.name!r} has dims {list(tensor.dims)}."
    if tensor.HasField("reshape"):
        if not batched and not tensor.reshape.shape:
            yield f"{kind.capitalize()} {tensor.name!r} is reshaped to nothing without batching."
        if _places(tensor.dims) != _places(tensor.reshape.shape):
            yield f"{kind.capitalize()} {tensor.name!r} is reshaped to another number of values."


def _places(dims: Any) -> tuple[int, int]:
    """Return the product of the fixed axes and the number of dynamic ones."""
    product = 1
    for dim in dims:
        product *= dim if dim != -1 else 1
    return product, sum(1 for dim in dims if dim == -1)


def _batching(config: Any) -> Iterator[str]:
    if config.max_batch_size <= 0:
        yield "Dynamic batching is on for a model without batching."
    for size in config.dynamic_batching.preferred_batch_size:
        if not 1 <= size <= config.max_batch_size:
            yield f"Preferred batch size {size} is not within 1 and {config.max_batch_size}."
