"""ExportedProgram: the graph that torch.export makes of an original, and the same graph as TorchScript."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from converters.torch_source import TorchSource
from schemas.errors import ConversionFailed
from schemas.step_io import StepContext

if TYPE_CHECKING:
    import torch


def exported(context: StepContext, source: TorchSource, tensors: Sequence[torch.Tensor]) -> Any:
    """Return ``source`` as an ExportedProgram whose dynamic axes are the descriptor's, as far as they can be.

    AUTO lets torch.export find out which sizes are equal; what it fixes is seen when other sizes run. Raises what
    torch.export raises.
    """
    import torch
    from torch.export import Dim

    descriptor = context.request.descriptor
    assert descriptor is not None
    by_name = {spec.name: spec for spec in descriptor.inputs}
    dynamic = tuple(
        {axis: Dim.AUTO for axis, dim in enumerate(by_name[name].shape) if isinstance(dim, str)}
        for name in source.input_names
    )
    return torch.export.export(source.module, tuple(tensors), dynamic_shapes={"tensors": dynamic})


def scripted(program: Any, arguments: Sequence[str]) -> Any:
    """Return ``program`` as TorchScript that takes ``arguments`` in order: compiled from its graph, not traced.

    Sizes stay computations, where a trace of the same graph makes numbers of them. Raises ConversionFailed for an
    operator that is not torch's own.
    """
    import torch
    from torch.fx.graph import CodeGen

    module = program.module(check_guards=False)
    graph = module.graph
    # Without this the code would flatten Python containers first, which TorchScript cannot.
    graph.set_codegen(CodeGen())
    for node in list(graph.nodes):
        if node.op == "call_module" and str(node.target).startswith("_guards"):
            graph.erase_node(node)
        elif node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            operator: Any = node.target
            if operator.namespace != "aten":
                raise ConversionFailed(f"The graph uses {operator.name()}, which is not torch's own.")
            if not operator._schema.returns:
                # What only asserts a size gives nothing.
                graph.erase_node(node)
            elif operator is torch.ops.aten.sym_size.int:
                node.target = torch.ops.aten.size
            else:
                node.target = operator.overloadpacket
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for node, name in zip(placeholders, arguments, strict=True):
        node.target = node.name = name
    # They check sizes in Python.
    module._forward_pre_hooks.clear()
    module._forward_hooks.clear()
    graph.eliminate_dead_code()
    module.recompile()
    module.training = False
    made = torch.jit.script(module)
    made.eval()
    return made
