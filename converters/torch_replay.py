"""A traced TorchScript program replayed operator by operator, for the exporter that does not read TorchScript."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from converters.model_errors import RAISED_BY_MODELS
from converters.torch_source import TorchSource, flat_module

if TYPE_CHECKING:
    import torch

_CONTROL_FLOW = ("prim::If", "prim::Loop")


def replayed(source: TorchSource, tensors: Sequence[torch.Tensor]) -> TorchSource | None:
    """Return ``source`` as a plain module that gives the same outputs, or None where that is not known to work.

    A saved trace keeps no ranks of inner values, which the TorchScript exporter needs for some operators; replaying it
    finds them again. ``tensors`` are example inputs in the order of ``source.input_names``. Programs with control flow
    are left alone, because replaying would freeze their decisions.
    """
    import torch

    module: Any = source.inner
    if not isinstance(module, torch.jit.ScriptModule):
        return None
    graph: Any = module.inlined_graph
    if any(True for kind in _CONTROL_FLOW for _ in graph.findAllNodes(kind)):
        return None
    forward: Any = module.forward
    arguments = [argument.name for argument in list(forward.schema.arguments)[1:]]
    if len(arguments) != len(source.input_names):
        return None
    # By name where the names are the arguments', in whatever order; else by position.
    by_name = set(arguments) == set(source.input_names)
    order = [source.input_names.index(name) if by_name else at for at, name in enumerate(arguments)]
    names = tuple(source.module.named(*tensors))  # type: ignore[operator]
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = _program(module, tuple(tensors[at] for at in order)).module(check_guards=False)
    except RAISED_BY_MODELS:
        return None

    def call(inner: torch.nn.Module, given: Sequence[torch.Tensor]) -> Any:
        return inner(*(given[at] for at in order))

    flat = flat_module(program, call, names, source.input_names)
    return TorchSource(flat, source.input_names, names, notes=source.notes, inner=program)


def _program(module: torch.jit.ScriptModule, tensors: tuple[torch.Tensor, ...]) -> Any:
    from torch._export.converter import TS2EPConverter

    class Converter(TS2EPConverter):
        def retrace_as_exported_program(self, gm: Any, name_to_constant: dict[str, Any]) -> Any:
            _plain_sizes(gm, name_to_constant)
            return super().retrace_as_exported_program(gm, name_to_constant)

    return Converter(module, tensors).convert()


def _plain_sizes(gm: Any, constants: Mapping[str, Any]) -> None:
    """Compute sizes as numbers again. A trace computes them as tensors, and a number taken out of a tensor is one that
    an export knows nothing of."""
    import torch

    for node in list(gm.graph.nodes):
        if node.target is torch.ops.aten._local_scalar_dense.default:
            with gm.graph.inserting_before(node):
                number = _number(gm, node.args[0], constants)
            if number is not None:
                _replace(node, number)
                gm.graph.erase_node(node)
    gm.graph.eliminate_dead_code()
    gm.recompile()


def _replace(node: torch.fx.Node, number: Any) -> None:
    from torch.fx.node import map_arg

    for user in list(node.users):
        user.args = map_arg(user.args, lambda each: number if each is node else each)
        user.kwargs = map_arg(user.kwargs, lambda each: number if each is node else each)


def _number(gm: Any, value: Any, constants: Mapping[str, Any]) -> Any | None:
    """Return ``value`` as a number or a node that computes one, or None when it depends on more than sizes."""
    import torch

    aten = torch.ops.aten
    if not isinstance(value, torch.fx.Node):
        return value if isinstance(value, int) else None
    if value.op == "get_attr":
        constant = constants.get(str(value.target), getattr(gm, str(value.target), None))
        whole = isinstance(constant, torch.Tensor) and not constant.dim() and not constant.is_floating_point()
        return int(constant) if whole else None
    if value.target in (aten.scalar_tensor, aten.scalar_tensor.default):
        return value.args[0]
    if value.target is aten._to_copy.default:
        return _number(gm, value.args[0], constants)
    target: Any = value.target
    operation: Any = {aten.mul.Tensor: operator.mul, aten.add.Tensor: operator.add, aten.sub.Tensor: operator.sub}.get(
        target
    )
    if value.target in (aten.div.Scalar_mode, aten.div.Tensor_mode) and value.kwargs.get("rounding_mode"):
        # Sizes are not negative, so that floor and trunc are one.
        operation = operator.floordiv
    if value.target in (aten.floor_divide.default, aten.floor_divide.Scalar):
        operation = operator.floordiv
    if operation is None or value.kwargs.get("alpha", 1) != 1 or len(value.args) < 2:
        return None
    left, right = (_number(gm, each, constants) for each in value.args[:2])
    if left is None or right is None:
        return None
    return gm.graph.call_function(operation, (left, right))
