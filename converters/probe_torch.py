"""Guesses for torch originals: TorchScript and plain modules tell no shapes, an ExportedProgram tells all."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from converters.axes import Guess
from converters.probe_fitting import Shape, beside, fitted, joined
from converters.runners import Runner
from converters.sampling import SEQUENCE_AXIS, TRACE_BATCH
from converters.torch_hints import Hint, first_of, module_hints, script_hints, scripted
from converters.torch_runner import TorchRunner
from schemas.descriptor import BATCH_AXIS, Dim, DType, KnownBy, TensorSpec
from schemas.errors import ModeliumError

_SMALL_IMAGES = (8, 16, 28, 32, 64, 224, 96, 128, 256, 48, 12, 20, 24, 14, 40, 56, 100, 112, 192, 299, 384, 512)
_LARGE_IMAGES = (224, 256, 299, 384, 512, 128, 96, 64, 32, 28, 16, 8)
_CHANNELS_LAST = 6
"""Sizes tried with the channels last."""
_LENGTHS_1D = (64, 128, 256, 32, 16, 100, 1000, 16_000)
_VOLUMES = (16, 32, 64, 112)
_SEQUENCES = (16, 8, 32, 64, 128, 10, 1)
_COMPANIONS = 12
"""Shapes tried for the inputs that no weights touch."""
_LAYERS_MIXED = 6
"""Layers tried for each of several inputs when nothing tells which belongs to which."""
_BIG_MODEL = 5_000_000
"""Parameters above which an image model is more likely made for 224 than for 28 pixels."""


def torch_guesses(runner: Runner) -> Iterator[Guess]:
    """Yield guesses for every input together, likelier first: at a batch of two, then all of them at a batch of one."""
    if not isinstance(runner, TorchRunner):
        raise ModeliumError("A torch original was loaded in another runtime than torch.")
    exported = _exported(runner)
    if exported:
        yield from exported
        return
    names = runner.source.input_names
    hints, followed = _hints(runner, names)
    big = _parameters(runner) > _BIG_MODEL
    single = sum(1 for name in names if hints.get(name)) == 1
    if followed or len(names) == 1:
        told = {name: list(_shapes(hints.get(name, []), big=big, single=single)) for name in names}
    else:
        # Nobody knows which layer takes which input, so that each layer's likeliest shape is tried for each.
        layers = [next(_shapes([hint], big=big, single=True)) for hint in hints[names[0]]]
        told = dict.fromkeys(names, layers[:_LAYERS_MIXED])
    told = {name: [(_float(runner, dtype), *rest) for dtype, *rest in shapes] for name, shapes in told.items()}  # type: ignore[misc]
    together = _together({name: options for name, options in told.items() if options})
    if not together:
        return
    seen: list[tuple[dict[str, Shape], int]] = []
    for shapes in beside(runner, names, together):
        yield joined(shapes, TRACE_BATCH)
    for batch in (TRACE_BATCH, 1):
        if batch == 1 and len(names) == 1 and (sized := fitted(runner, names[0], told[names[0]])) is not None:
            yield joined({names[0]: sized}, TRACE_BATCH)
        for variant in range(_COMPANIONS if len(together[0]) < len(names) else 1):
            for known in together:
                shapes = {name: known.get(name) or _companion(name, known, variant) for name in names}
                if (shapes, batch) not in seen:
                    seen.append((shapes, batch))
                    yield joined(shapes, batch)


def _together(options: Mapping[str, Sequence[Shape]]) -> list[dict[str, Shape]]:
    """Return what the inputs that weights tell of may be together: equally likely shapes first, then every mix."""
    if not options:
        return []
    longest = max(len(shapes) for shapes in options.values())
    found = [
        {name: shapes[min(number, len(shapes) - 1)] for name, shapes in options.items()} for number in range(longest)
    ]
    if len(options) > 1:
        mixes = itertools.islice(itertools.product(*(shapes[:8] for shapes in options.values())), 200)
        found += [dict(zip(options, mix, strict=True)) for mix in mixes]
    return found


def _float(runner: TorchRunner, dtype: DType) -> DType:
    """Return the float that the weights have where ``dtype`` is the usual one."""
    import torch

    if dtype != "float32":
        return dtype
    floating = next((tensor.dtype for tensor in _weights(runner) if tensor.is_floating_point()), torch.float32)
    return "float64" if floating is torch.float64 else "float16" if floating is torch.float16 else "float32"


def _hints(runner: TorchRunner, names: Sequence[str]) -> tuple[dict[str, list[Hint]], bool]:
    """Return hints by input, and whether they come from following that input through the graph."""
    import torch

    inner = runner.source.inner
    module = inner if isinstance(inner, torch.jit.ScriptModule) else scripted(inner)
    if module is not None:
        by_argument = script_hints(module)
        if any(by_argument.values()):
            if set(names) <= set(by_argument):
                return {name: by_argument[name] for name in names}, True
            # A sidecar's own names stand for the arguments in their order.
            return dict(zip(names, by_argument.values(), strict=False)), True
    layers = module_hints(inner)
    return {name: list(layers) for name in names}, False


def _shapes(hints: Sequence[Hint], *, big: bool, single: bool) -> Iterator[Shape]:
    for hint in first_of(hints):
        match hint.kind:
            case "conv":
                yield from _convolved(hint, big)
            case "linear":
                yield from _features(hint)
            case "embedding":
                rows: Shape = ("int64", (BATCH_AXIS,), {})
                tokens: list[Shape] = [("int64", (BATCH_AXIS, SEQUENCE_AXIS), {SEQUENCE_AXIS: n}) for n in _SEQUENCES]
                # Several inputs that each index a table are mostly one id a row, as in a recommender.
                yield from (*tokens, rows) if single else (rows, *tokens)
            case "rnn":
                for length in _SEQUENCES[:4]:
                    if hint.batch_first:
                        yield "float32", (BATCH_AXIS, SEQUENCE_AXIS, hint.features), {SEQUENCE_AXIS: length}
                    else:
                        # Rows lie on the second axis, where no server can put requests together.
                        sizes = {SEQUENCE_AXIS: length, "items": TRACE_BATCH}
                        yield "float32", (SEQUENCE_AXIS, "items", hint.features), sizes
            case "einsum":
                yield _lettered(hint)
            case "image":
                # No weight fixes the channels, so that they are tried as any other axis is.
                for channels in (3, 1):
                    sizes = {"channels": channels, "height": 16, "width": 16}
                    yield "float32", (BATCH_AXIS, "channels", "height", "width"), sizes
            case "norm":
                yield "float32", (BATCH_AXIS, hint.features), {}
                yield "float32", (BATCH_AXIS, hint.features, "length"), {"length": 16}
                yield "float32", (BATCH_AXIS, hint.features, "height", "width"), {"height": 32, "width": 32}


def _lettered(hint: Hint) -> Shape:
    """Return an einsum operand's shape; what no weight tells is an axis, the batch where it leads."""
    dims: list[Dim] = []
    for place, (letter, size) in enumerate(hint.letters):
        dims.append(size or (BATCH_AXIS if place == 0 else f"axis_{letter}"))
    return "float32", tuple(dims), {dim: 16 for dim in dims if isinstance(dim, str) and dim != BATCH_AXIS}


def _convolved(hint: Hint, big: bool) -> Iterator[Shape]:
    if hint.axes == 1:
        for length in _LENGTHS_1D:
            yield "float32", (BATCH_AXIS, hint.features, "length"), {"length": length}
        return
    if hint.axes == 3:
        for size in _VOLUMES:
            sizes = {"depth": size, "height": size, "width": size}
            yield "float32", (BATCH_AXIS, hint.features, "depth", "height", "width"), sizes
        return
    large = big or (hint.kernel >= 7 and hint.stride >= 2) or hint.stride >= 4
    edges = _LARGE_IMAGES if large else _SMALL_IMAGES
    for size in edges:
        yield "float32", (BATCH_AXIS, hint.features, "height", "width"), {"height": size, "width": size}
    # As cameras and files have them; a model with its own preparation turns the axes itself.
    for size in edges[:_CHANNELS_LAST]:
        if size != hint.features:
            yield "float32", (BATCH_AXIS, "height", "width", hint.features), {"height": size, "width": size}


def _features(hint: Hint) -> Iterator[Shape]:
    if hint.flattened:
        for channels in (1, 3):
            side = math.isqrt(hint.features // channels)
            if side >= 4 and side * side * channels == hint.features:
                yield "float32", (BATCH_AXIS, channels, side, side), {}
    yield "float32", (BATCH_AXIS, hint.features), {}
    for length in _SEQUENCES[:3]:
        yield "float32", (BATCH_AXIS, SEQUENCE_AXIS, hint.features), {SEQUENCE_AXIS: length}


def _companion(name: str, known: Mapping[str, Shape], variant: int) -> Shape:
    """Return the ``variant``-th shape for an input that no weights touch, beside others that some do.

    Masks, lengths and factors are such inputs; they have the first axes of what they go with.
    """
    _, shape, sizes = next(iter(known.values()))
    words = name.lower()
    whole: DType = "int64" if "id" in words or "len" in words or "index" in words else "float32"
    kinds: tuple[DType, ...] = ("int64", "bool", "float32") if "mask" in words else (whole, "float32", "int64", "bool")
    dims = [shape[:2], shape[:1], (*shape[:1], 1), shape] if "len" not in words else [shape[:1], shape[:2]]
    choices = list(itertools.product(dims, dict.fromkeys(kinds)))
    dim, dtype = choices[min(variant, len(choices) - 1)]
    return dtype, dim, {axis: size for axis, size in sizes.items() if axis in dim}


def _exported(runner: TorchRunner) -> list[Guess]:
    """Return what an ExportedProgram was exported with, dynamic axes named; [] for any other original."""
    import torch

    program = runner.source.inner
    if not isinstance(program, torch.export.ExportedProgram):
        return []
    slots = [slot for slot in program.graph_signature.user_inputs if isinstance(slot, str)]
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    specs, sizes = [], {}
    for name, slot in zip(runner.source.input_names, slots, strict=False):
        tensor = nodes[slot].meta["val"]
        dims: list[Dim] = []
        for axis, dim in enumerate(tensor.shape):
            if isinstance(dim, int):
                dims.append(dim)
                continue
            label = _axis_name(str(dim), axis, name)
            sizes[label] = _size_within(program, dim, axis)
            dims.append(label)
        dtype = str(tensor.dtype).removeprefix("torch.")
        specs.append(TensorSpec(name=name, dtype=dtype, shape=tuple(dims), known_by=KnownBy.HEADER))  # type: ignore[arg-type]
    guesses = [Guess(tuple(specs), sizes)]
    if any(axis == BATCH_AXIS for axis in sizes):
        guesses.append(Guess(tuple(specs), {**sizes, BATCH_AXIS: 1}))
    return guesses


def _axis_name(symbol: str, axis: int, name: str) -> str:
    plain = symbol if symbol.isidentifier() else f"{name}_{axis}"
    return BATCH_AXIS if axis == 0 else f"axis_{plain}"


def _size_within(program: Any, dim: Any, axis: int) -> int:
    """Return a size that the program's constraints allow: two rows, or the size it was exported with."""
    bounds = next((r for symbol, r in program.range_constraints.items() if str(symbol) == str(dim)), None)
    # A bound may be infinity, or an expression over infinity that sympy calls finite and cannot count.
    low = int(bounds.lower) if bounds is not None and bounds.lower.is_Integer else 0
    high = int(bounds.upper) if bounds is not None and bounds.upper.is_Integer else 1 << 30
    hint = getattr(dim.node, "hint", None)
    wanted = TRACE_BATCH if axis == 0 else (hint if isinstance(hint, int) else 16)
    return max(low, min(wanted, high), 1)


def _parameters(runner: TorchRunner) -> int:
    return sum(int(tensor.numel()) for tensor in _weights(runner))


def _weights(runner: TorchRunner) -> list[Any]:
    import torch

    inner = runner.source.inner
    if isinstance(inner, torch.export.ExportedProgram):
        return list(inner.parameters())
    return list(inner.parameters()) if isinstance(inner, torch.nn.Module) else []


def module_facts(runner: Runner) -> dict[str, Any]:
    """Return descriptor fields that a loaded torch model tells: parameters and the class it was."""
    import torch

    if not isinstance(runner, TorchRunner):
        return {}
    weights = _weights(runner)
    dtypes: dict[str, int] = {}
    for tensor in weights:
        name = str(tensor.dtype).removeprefix("torch.")
        dtypes[name] = dtypes.get(name, 0) + int(tensor.numel())
    facts: dict[str, Any] = {
        "parameter_count": sum(dtypes.values()),
        "parameter_bytes": sum(int(t.numel()) * t.element_size() for t in weights),
        "parameter_dtypes": dtypes,
    }
    inner = runner.source.inner
    if isinstance(inner, torch.jit.ScriptModule):
        facts["architecture"] = inner.original_name
    elif isinstance(inner, torch.nn.Module):
        facts["architecture"] = type(inner).__name__
    return facts
