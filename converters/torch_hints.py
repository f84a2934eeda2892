"""Hints: what the first weights that touch an input tell about its shape."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from converters.model_errors import RAISED_BY_MODELS

_NODES_FOLLOWED = 200
_FLATTENS = frozenset({"aten::view", "aten::reshape", "aten::flatten"})
_KEEPS_SHAPE = frozenset(
    f"aten::{name}"
    for name in (
        "relu", "gelu", "sigmoid", "tanh", "silu", "elu", "leaky_relu", "softplus", "softmax", "log_softmax", "exp",
        "abs", "neg", "sqrt", "clamp", "dropout", "contiguous", "clone", "detach", "to",
    )
)  # fmt: skip
_TAKES_IMAGES = frozenset(
    f"aten::{name}"
    for name in ("grid_sampler", "grid_sampler_2d", "upsample_bilinear2d", "upsample_nearest2d", "upsample_bicubic2d")
)
"""Operators that take (batch, channels, height, width) and nothing else, with no weights that would fix any of them.
Pooling takes an image without a batch, too."""

_GOES_ON = frozenset({"norm", "image"})
"""Kinds of hint that leave something open, so that what comes behind is looked at, too."""


@dataclass(frozen=True)
class Hint:
    """The first operation with weights that an input reaches, and the size of the axis that the weights fix."""

    kind: Literal["conv", "linear", "embedding", "rnn", "norm", "einsum", "image"]
    features: int = 0
    """Channels, features or input size; rows of the table for an embedding; 0 where no weights fix any."""
    axes: int = 0
    """Spatial axes of a convolution."""
    kernel: int = 1
    stride: int = 1
    flattened: bool = False
    """The input was reshaped on its way there."""
    batch_first: bool = True
    letters: tuple[tuple[str, int], ...] = ()
    """Every axis of an einsum's operand: its letter, and its size where a weight has that letter too, else 0."""


def script_hints(module: Any) -> dict[str, list[Hint]]:
    """Return input name to hints, nearest first, by following the graph of a ScriptModule from its inputs."""
    follower = _Follower(module)
    names = [argument.name for argument in module.forward.schema.arguments[1:]]
    return {name: list(follower.hints(value)) for name, value in zip(names, follower.inputs[1:], strict=False)}


def module_hints(module: Any) -> list[Hint]:
    """Return hints of a plain module's layers in the order they are registered, equal ones once."""
    import torch

    hints: list[Hint] = []
    for layer in module.modules():
        hint: Hint | None = None
        if isinstance(layer, torch.nn.Conv1d | torch.nn.Conv2d | torch.nn.Conv3d):
            kernel, stride = layer.kernel_size[0], layer.stride[0]
            hint = Hint("conv", layer.in_channels, len(layer.kernel_size), int(kernel), int(stride))
        elif isinstance(layer, torch.nn.Linear):
            hint = Hint("linear", layer.in_features)
        elif isinstance(layer, torch.nn.Embedding | torch.nn.EmbeddingBag):
            hint = Hint("embedding", layer.num_embeddings)
        elif isinstance(layer, torch.nn.RNNBase):
            hint = Hint("rnn", layer.input_size, batch_first=bool(layer.batch_first))
        if hint is not None and hint not in hints:
            hints.append(hint)
    return hints


def scripted(module: Any) -> Any | None:
    """Return a plain module as a ScriptModule for its graph's sake, or None when it cannot be scripted."""
    import torch
    from torch.jit.frontend import FrontendError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.jit.script(module)
    except (FrontendError, *RAISED_BY_MODELS):  # type: ignore[misc]
        return None


class _Follower:
    """Follows one graph's inputs to the first weights that each meets."""

    def __init__(self, module: Any) -> None:
        graph = module.inlined_graph
        self.module = module
        self.inputs = list(graph.inputs())
        self.root = self.inputs[0] if self.inputs else None
        self.names = {value.debugName() for value in self.inputs[1:]}
        self.alias: dict[str, list[Any]] = {}
        """A value inside a branch or loop to the values outside, or of the next turn, that it becomes."""
        self.depends: dict[str, frozenset[str]] = {}
        self._enter(graph.nodes())

    def hints(self, value: Any) -> Iterator[Hint]:
        mine = value.debugName()
        queue: deque[tuple[Any, bool, bool]] = deque([(value, False, True)])
        seen: set[str] = {mine}
        for _ in range(_NODES_FOLLOWED):
            if not queue:
                return
            current, flattened, same = queue.popleft()
            reached = [(each, flattened, same) for each in self.alias.get(current.debugName(), ())]
            for use in current.uses():
                node = use.user
                hint = _hint(node, current, self.module, self.root, flattened)
                if hint is None and same:
                    hint = _shape_hint(node, current, self.module, self.root)
                if hint is not None:
                    yield hint
                    if hint.kind not in _GOES_ON:
                        continue
                # Behind an operation with another input, the shape may be that one's by broadcasting.
                if any(self._origins(each) - {mine} for each in node.inputs()):
                    continue
                kept = same and node.kind() in _KEEPS_SHAPE
                reached += [(each, flattened or node.kind() in _FLATTENS, kept) for each in node.outputs()]
            for each, flat, kept in reached:
                if each.type().kind() in ("TensorType", "OptionalType") and each.debugName() not in seen:
                    seen.add(each.debugName())
                    queue.append((each, flat, kept))

    def _enter(self, nodes: Any) -> None:
        for node in nodes:
            for block in node.blocks():
                outputs = list(block.outputs())
                if node.kind() == "prim::If":
                    pairs = list(zip(outputs, node.outputs(), strict=True))
                elif node.kind() == "prim::Loop":
                    # The first two inputs are the trip count and the condition; a turn's own begin with its number.
                    pairs = list(zip(list(node.inputs())[2:], list(block.inputs())[1:], strict=True))
                    pairs += list(zip(outputs[1:], node.outputs(), strict=True))
                else:
                    pairs = []
                for inner, outer in pairs:
                    self.alias.setdefault(inner.debugName(), []).append(outer)
                self._enter(block.nodes())

    def _origins(self, value: Any) -> frozenset[str]:
        """Return the graph inputs that a value is computed from."""
        name = value.debugName()
        if name in self.names:
            return frozenset({name})
        if name not in self.depends:
            self.depends[name] = frozenset()
            node = value.node()
            sources = [*node.inputs(), *(out for block in node.blocks() for out in block.outputs())]
            self.depends[name] = frozenset().union(*(self._origins(each) for each in sources))
        return self.depends[name]


def _hint(node: Any, value: Any, module: Any, root: Any, flattened: bool) -> Hint | None:
    inputs = list(node.inputs())
    position = next((i for i, each in enumerate(inputs) if each.debugName() == value.debugName()), -1)
    kind = node.kind()

    def weight(at: int) -> Any | None:
        return _tensor(inputs[at], module, root) if at < len(inputs) else None

    if kind in ("aten::conv1d", "aten::conv2d", "aten::conv3d", "aten::_convolution") and position == 0:
        kernel = weight(1)
        if kernel is None:
            return None
        groups = _constant(inputs[8 if kind == "aten::_convolution" else 6], 1)
        strides = [_constant(each, 1) for each in inputs[3].node().inputs()] if len(inputs) > 3 else []
        transposed = kind == "aten::_convolution" and bool(_constant(inputs[6], False))
        channels = kernel.shape[0] if transposed else kernel.shape[1] * groups
        stride = strides[0] if strides else 1
        return Hint("conv", channels, kernel.dim() - 2, kernel.shape[-1], stride, flattened)
    if kind == "aten::linear" and position == 0 and (matrix := weight(1)) is not None:
        return Hint("linear", matrix.shape[1], flattened=flattened)
    if (
        kind in ("aten::matmul", "aten::mm")
        and position == 0
        and (matrix := weight(1)) is not None
        and matrix.dim() > 1
    ):
        return Hint("linear", matrix.shape[-2], flattened=flattened)
    if kind == "aten::addmm" and position == 1 and (matrix := weight(2)) is not None:
        return Hint("linear", matrix.shape[0], flattened=flattened)
    if kind in ("aten::embedding", "aten::embedding_bag") and position == 1 and (table := weight(0)) is not None:
        return Hint("embedding", table.shape[0], flattened=flattened)
    if kind in ("aten::lstm", "aten::gru", "aten::rnn_tanh", "aten::rnn_relu") and position == 0:
        listed = _attribute(inputs[2], module, root)
        first = listed[0] if isinstance(listed, list) and listed else None
        if first is None and inputs[2].node().kind() == "prim::ListConstruct":
            first = _tensor(next(iter(inputs[2].node().inputs())), module, root)
        if first is not None:
            return Hint("rnn", first.shape[1], batch_first=bool(_constant(inputs[-1], True)))
    if kind == "aten::batch_norm" and position == 0 and (mean := weight(3)) is not None:
        return Hint("norm", mean.shape[0], flattened=flattened)
    if kind == "aten::layer_norm" and position == 0 and (scale := weight(2)) is not None:
        return Hint("linear", scale.shape[-1], flattened=flattened)
    return None


def _shape_hint(node: Any, value: Any, module: Any, root: Any) -> Hint | None:
    """Return what an operator tells of every axis of ``value``, which has the input's own shape still."""
    inputs = list(node.inputs())
    first = bool(inputs) and inputs[0].debugName() == value.debugName()
    if node.kind() in _TAKES_IMAGES and first:
        return Hint("image", axes=2)
    if node.kind() == "aten::bilinear":
        matrix = _tensor(inputs[2], module, root)
        return Hint("linear", matrix.shape[1 if first else 2]) if matrix is not None else None
    uses = list(node.output().uses()) if node.kind() == "prim::ListConstruct" else []
    user = uses[0].user if len(uses) == 1 else None
    if user is None or user.kind() != "aten::einsum":
        return None
    equation = str(_constant(next(iter(user.inputs())), "")).replace(" ", "")
    terms = equation.partition("->")[0].split(",")
    if len(terms) != len(inputs) or not all(term.isalpha() for term in terms):
        return None
    sizes: dict[str, int] = {}
    for term, operand in zip(terms, inputs, strict=True):
        weight = _tensor(operand, module, root)
        if weight is not None and weight.dim() == len(term):
            # A size of one stands beside any other by broadcasting.
            sizes.update({letter: size for letter, size in zip(term, weight.shape, strict=True) if size != 1})
    position = next(i for i, operand in enumerate(inputs) if operand.debugName() == value.debugName())
    letters = tuple((letter, sizes.get(letter, 0)) for letter in terms[position])
    return Hint("einsum", letters=letters) if any(size for _, size in letters) else None


def _tensor(value: Any, module: Any, root: Any) -> Any | None:
    """Return the weight that a graph value stands for, or None when it is computed."""
    import torch

    node = value.node()
    if node.kind() == "prim::Constant":
        constant = value.toIValue()
        return constant if isinstance(constant, torch.Tensor) else None
    if node.kind() in ("aten::t", "aten::numpy_T"):
        inner = _tensor(next(iter(node.inputs())), module, root)
        return inner.t() if inner is not None and inner.dim() == 2 else None
    if node.kind() == "prim::unchecked_cast":
        return _tensor(next(iter(node.inputs())), module, root)
    found = _attribute(value, module, root)
    return found if isinstance(found, torch.Tensor) else None


def _attribute(value: Any, module: Any, root: Any) -> Any | None:
    path: list[str] = []
    while value.debugName() != root.debugName():
        node = value.node()
        if node.kind() != "prim::GetAttr":
            return None
        path.append(node.s("name"))
        value = next(iter(node.inputs()))
    found = module
    for name in reversed(path):
        found = getattr(found, name, None)
        if found is None:
            return None
    return found


def _constant(value: Any, default: Any) -> Any:
    known = value.toIValue() if value.node().kind() == "prim::Constant" else None
    return default if known is None else known


def first_of(hints: Sequence[Hint]) -> Sequence[Hint]:
    """Return the hints worth trying: the nearest, and the next of another kind."""
    kept: list[Hint] = []
    for hint in hints:
        if hint.kind not in [k.kind for k in kept]:
            kept.append(hint)
    # A normalisation fixes channels and not the number of axes, sampling the other way about; what follows tells more.
    kept.sort(key=lambda hint: hint.kind in _GOES_ON)
    return kept[:3]
