"""What a Keras model's config says: layers, inputs, and the classes it needs that Keras does not have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from analyzer.draft import Draft, clean, listing
from schemas.descriptor import BATCH_AXIS, Dim, DType, KnownBy, TensorSpec
from schemas.errors import Quarantined, Unsupported


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


MAX_PARTS = 2_000_000
"""Dicts and lists that are walked; real configs have thousands."""
MAX_LAYERS = 100_000
_HARMLESS = ("keras", "tf_keras", "tensorflow.keras", "keras_core")
_DANGEROUS = _words(
    "os posix nt subprocess sys shutil socket pickle marshal importlib runpy ctypes pty code codeop builtins io "
    "tempfile webbrowser multiprocessing threading asyncio http urllib requests cloudpickle dill joblib"
)
_BUILTINS = frozenset({"function", "type", "int", "float", "str", "bool", "tuple", "list", "dict", "set", "NoneType"})
_DTYPES: dict[str, DType] = {
    "float64": "float64", "float32": "float32", "float16": "float16", "bfloat16": "bfloat16", "int64": "int64",
    "int32": "int32", "int16": "int16", "int8": "int8", "uint64": "uint64", "uint32": "uint32", "uint16": "uint16",
    "uint8": "uint8", "bool": "bool", "string": "string",
}  # fmt: skip
LAMBDA = "A Keras Lambda layer in this file carries compiled Python code."


def read_config(draft: Draft, config: Any) -> None:
    """Fill ``draft`` from a model's config, as JSON gave it. Refuses what would need code to load."""
    draft.know(framework="keras")
    if not isinstance(config, dict) or not isinstance(config.get("class_name"), str):
        draft.refuse(
            Unsupported(
                "This Keras file's config says nothing of a model's class.", hint="Save it again with `model.save`."
            )
        )
        return
    inner = config.get("config")
    inner = inner if isinstance(inner, dict) else {}
    name = inner.get("name")
    kind = config["class_name"]
    plain = kind in ("Functional", "Sequential", "Model")
    draft.know(architecture=name if plain and isinstance(name, str) and name else kind)
    _refuse_code(draft, config)
    layers: dict[str, int] = {}
    for number, layer in enumerate(_layers(config)):
        if number >= MAX_LAYERS:
            break
        layers[layer] = layers.get(layer, 0) + 1
    layers.pop("InputLayer", None)
    draft.operators(layers)
    specs = tuple(_inputs(inner))
    if specs:
        draft.know(inputs=specs)


def _parts(config: Any) -> Iterator[dict[str, Any]]:
    pending, seen = [config], 0
    while pending and seen < MAX_PARTS:
        part = pending.pop()
        seen += 1
        if isinstance(part, list):
            pending += part
        elif isinstance(part, dict):
            pending += part.values()
            yield part


def _refuse_code(draft: Draft, config: Any) -> None:
    own: dict[str, None] = {}
    for part in _parts(config):
        kind, module, registered = part.get("class_name"), part.get("module"), part.get("registered_name")
        if not isinstance(kind, str):
            continue
        if kind in ("Lambda", "__lambda__"):
            draft.refuse(Quarantined(LAMBDA, hint="Replace it by a layer that needs no code, and save it again."))
        if not isinstance(module, str) or not module:
            if isinstance(registered, str) and ">" in registered:
                own.setdefault(registered)
            continue
        root = module.partition(".")[0]
        if root in _DANGEROUS and not (root == "builtins" and kind in _BUILTINS):
            draft.refuse(
                Quarantined(
                    f"This Keras file names {clean(module, 60)}.{clean(kind, 60)}, which is no part of Keras and "
                    "reaches the system.",
                    hint="Nothing in it was run. Delete it, or get the model from a source you trust.",
                )
            )
        elif root != "builtins" and not module.startswith(_HARMLESS):
            own.setdefault(registered if isinstance(registered, str) else f"{module}.{kind}")
    if own:
        draft.note(f"Classes of its author's own: {listing(own, most=20)}.")
        draft.refuse(
            Unsupported(
                f"This Keras model is made of classes that its file does not hold: {listing(own)}.",
                hint='Where they are defined, run `model.export("folder")` and drop that folder, a SavedModel: it '
                "holds the graph and needs no class.",
            )
        )


def _layers(config: dict[str, Any]) -> Iterator[str]:
    """Yield the class of every layer, also of those inside models and wrappers; without the models themselves."""
    pending: list[Any] = [config]
    for _ in range(MAX_PARTS):
        if not pending:
            return
        part = pending.pop()
        if isinstance(part, list):
            pending += reversed(part)
            continue
        inner = part.get("config") if isinstance(part, dict) else None
        # The oldest Sequential models keep their layers in the place of the config.
        inside = inner if isinstance(inner, list) else inner.get("layers") if isinstance(inner, dict) else None
        if isinstance(inside, list):
            pending += reversed(inside)
            continue
        if isinstance(part, dict) and isinstance(part.get("class_name"), str):
            yield part["class_name"]
            for key in ("layer", "backward_layer", "cell", "forward_layer"):
                if isinstance(inner, dict) and isinstance(inner.get(key), dict):
                    pending.append(inner[key])


def _inputs(config: dict[str, Any]) -> Iterator[TensorSpec]:
    layers = config.get("layers")
    entries = [layer for layer in layers if isinstance(layer, dict)] if isinstance(layers, list) else []
    found: dict[str, dict[str, Any]] = {}
    for layer in entries[:MAX_LAYERS]:
        inner = layer.get("config")
        if layer.get("class_name") == "InputLayer" and isinstance(inner, dict) and isinstance(inner.get("name"), str):
            found[inner["name"]] = inner
    order = [name for name in _names(config.get("input_layers")) if name in found] or list(found)
    for name in order[:1000]:
        spec = _spec(name, found[name], single=len(order) == 1)
        if spec is not None:
            yield spec


def _names(layers: Any) -> list[str]:
    """Return the layer names in a structure of ``[name, node, tensor]``."""
    names: list[str] = []
    pending = [layers]
    while pending and len(names) < 1000:
        part = pending.pop()
        if isinstance(part, dict):
            pending += reversed(list(part.values()))
        elif isinstance(part, list) and part and isinstance(part[0], str):
            names.append(part[0])
        elif isinstance(part, list):
            pending += reversed(part)
    return names


def _spec(name: str, inner: dict[str, Any], *, single: bool) -> TensorSpec | None:
    shape = inner.get("batch_shape") or inner.get("batch_input_shape")
    dtype = inner.get("dtype")
    if isinstance(dtype, dict):
        policy = dtype.get("config")
        dtype = policy.get("name") if isinstance(policy, dict) else None
    if not isinstance(shape, list) or len(shape) > 16 or dtype not in _DTYPES or len(name) > 200:
        return None
    if not all(size is None or (isinstance(size, int) and 0 <= size < 1 << 31) for size in shape):
        return None
    return TensorSpec(
        name=clean(name), dtype=_DTYPES[dtype], shape=named_axes(clean(name), shape, single), known_by=KnownBy.HEADER
    )


def named_axes(name: str, shape: list[int | None], single: bool) -> tuple[Dim, ...]:
    """Return ``shape`` with its open axes named as the runner of the format names them."""
    dims: list[Dim] = []
    for axis, size in enumerate(shape):
        if size is not None:
            dims.append(size)
        elif axis == 0:
            dims.append(BATCH_AXIS)
        elif single and len(shape) == 4 and axis in (1, 2):
            dims.append("height" if axis == 1 else "width")
        elif single and len(shape) in (2, 3) and axis == 1:
            dims.append("sequence")
        else:
            dims.append(f"{name[:200]}_{axis}")
    return tuple(dims)
