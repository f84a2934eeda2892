"""TorchSource: an original that torch runs, as a module that takes tensors and returns a tuple of tensors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters.model_errors import RAISED_BY_MODELS, first_line
from schemas.descriptor import Format, ModelDescriptor
from schemas.errors import ModelFailed, NeedsInput, Unsupported
from schemas.step_io import StepContext

if TYPE_CHECKING:
    import torch

Call = Callable[["torch.nn.Module", Sequence["torch.Tensor"]], Any]
"""Runs the original on tensors in the order of ``TorchSource.input_names``; returns whatever it returns."""


@dataclass(frozen=True)
class TorchSource:
    """An original in eval mode on the CPU.

    ``module(*tensors)`` takes tensors in the order of ``input_names`` and returns a tuple of tensors, in the order of
    ``output_names`` where those are known; it never leaves eval mode, whatever ``train()`` is told. ``output_names``
    is () until the descriptor has outputs; :meth:`run` names them in any case.
    """

    module: torch.nn.Module
    input_names: tuple[str, ...]
    output_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    inner: Any = field(default=None, repr=False)
    """The loaded ScriptModule, ExportedProgram or nn.Module behind ``module``."""

    def run(self, feeds: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return output name to tensor for ``feeds`` by input name, without gradients, in a fixed order.

        Raises KeyError when an input is missing, and whatever the model raises.
        """
        import torch

        with torch.inference_mode():
            named: dict[str, torch.Tensor] = self.module.named(*(feeds[name] for name in self.input_names))  # type: ignore[operator]
        return named


def load(context: StepContext) -> TorchSource:
    """Load input ``model`` as ``context.request.descriptor`` says it is.

    Runs code of the model (TorchScript, a sidecar's class): only ever inside the sandbox.

    Raises:
        ModelFailed: The file is broken, or the weights don't fit the class.
        NeedsInput: Weights without a class.
        Unsupported: The format isn't one that torch runs, or the model takes something other than tensors.
    """
    from converters.huggingface_source import load_huggingface
    from converters.module_source import load_module
    from converters.pickled_source import load_pickled

    descriptor = context.request.descriptor
    if descriptor is None:
        raise ValueError("a torch source needs request.descriptor")
    path = model_path(context, descriptor)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        match descriptor.format:
            case Format.TORCHSCRIPT:
                return _load_torchscript(path, descriptor)
            case Format.EXPORTED_PROGRAM:
                return _load_exported_program(path, descriptor)
            case Format.HUGGINGFACE:
                return load_huggingface(context, context.input("model"), descriptor)
            case Format.TORCH_STATE_DICT | Format.SAFETENSORS:
                return load_module(context, path, descriptor)
            case Format.TORCH_MODULE:
                return load_pickled(context, path, descriptor)
            case _:
                raise Unsupported(f"A {descriptor.format} file is not one that torch runs.")


def model_path(context: StepContext, descriptor: ModelDescriptor) -> Path:
    """Return the model file: input ``model`` itself, or the descriptor's entry inside it."""
    path = context.input("model")
    if path.is_dir() and descriptor.entry:
        return path / descriptor.entry
    return path


def flatten(value: Any, name: str = "output") -> dict[str, torch.Tensor]:
    """Return the tensors in a model's output by name, in the order the model gives them.

    A lone tensor is ``output``; items of a tuple are ``output_0``, ``output_1``, ...; a mapping gives its own keys, and
    nested values join names with ``_``. None and plain numbers are left out.
    """
    import torch

    if isinstance(value, torch.Tensor):
        return {name: value}
    if isinstance(value, Mapping):
        top = name == "output"
        items = [(str(key) if top else f"{name}_{key}", item) for key, item in value.items()]
    elif isinstance(value, tuple) and hasattr(value, "_asdict"):
        return flatten(value._asdict(), name)
    elif isinstance(value, list | tuple):
        tensors = [item for item in value if item is not None]
        items = [(name if len(tensors) == 1 else f"{name}_{i}", item) for i, item in enumerate(tensors)]
    elif hasattr(value, "__dataclass_fields__"):
        return flatten({key: getattr(value, key) for key in value.__dataclass_fields__}, name)
    else:
        return {}
    flat: dict[str, torch.Tensor] = {}
    for key, item in items:
        flat.update(flatten(item, key))
    return flat


def name_outputs(flat: Mapping[str, torch.Tensor], names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return the tensors of ``flat`` as ``names``: picked by name where the model names them so, else by position.

    Raises ModelFailed when the model returns fewer tensors than there are names.
    """
    if not names:
        return dict(flat)
    if set(names) <= set(flat):
        return {name: flat[name] for name in names}
    if len(flat) < len(names):
        raise ModelFailed(
            f"The model returns {len(flat)} tensors ({', '.join(flat)}), but {len(names)} outputs are named.",
            hint=f"Name at most {len(flat)} outputs in the sidecar.",
        )
    return dict(zip(names, flat.values(), strict=False))


def flat_module(
    inner: Any, call: Call, output_names: Sequence[str], input_names: Sequence[str] = ()
) -> torch.nn.Module:
    """Return ``inner`` as a module whose forward takes tensors and returns a tuple of tensors.

    Its ``named(*tensors)`` returns the same as a dict by output name. Aliased outputs are kept apart. An output that
    the model calls as one of ``input_names`` gets ``_output`` behind its name, because a graph has each name once.
    """
    import torch

    class FlatModule(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner
            self.training = False

        def train(self, mode: bool = True) -> FlatModule:
            """Stay in eval mode: exporters switch modes back and forth, and an ExportedProgram refuses to."""
            return self

        def named(self, *tensors: torch.Tensor) -> dict[str, torch.Tensor]:
            flat = flatten(call(self.inner, tensors))
            flat = {f"{name}_output" if name in input_names else name: value for name, value in flat.items()}
            outputs = name_outputs(flat, output_names)
            if not outputs:
                raise ModelFailed(
                    "The model returns no tensor.", hint="Its forward must return tensors, or a dict or tuple of them."
                )
            return outputs

        def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(self.named(*tensors).values())

    return FlatModule().requires_grad_(False)


def keyword_call(arguments: Sequence[str], names: Sequence[str], what: str) -> Call:
    """Return how to call a module whose tensor arguments are ``arguments`` with tensors named ``names``.

    By keyword where every name is an argument, so that their order cannot matter; else by position.
    """
    if set(names) <= set(arguments):
        return lambda module, tensors: module(**dict(zip(names, tensors, strict=True)))
    if len(names) > len(arguments):
        raise ModelFailed(
            f"{len(names)} inputs are named ({', '.join(names)}), but {what} takes {', '.join(arguments) or 'none'}.",
            hint="Name the inputs in the sidecar as the model's forward does.",
        )
    return lambda module, tensors: module(*tensors)


def _names(descriptor: ModelDescriptor) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return tuple(spec.name for spec in descriptor.inputs), tuple(spec.name for spec in descriptor.outputs)


def _load_torchscript(path: Path, descriptor: ModelDescriptor) -> TorchSource:
    import torch

    try:
        module = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
        module.eval()
    except RAISED_BY_MODELS as error:
        raise ModelFailed(
            f"torch cannot load this TorchScript file: {first_line(error)}.",
            hint="Save it again with torch.jit.save, with a torch no newer than this one.",
        ) from error
    inputs, outputs = _names(descriptor)
    arguments: list[str] = []
    for argument in list(module.forward.schema.arguments)[1:]:
        kind = str(argument.type)
        if kind in ("Tensor", "Optional[Tensor]"):
            # What has a default is left out unless the descriptor names it.
            if not argument.has_default_value() or argument.name in inputs:
                arguments.append(argument.name)
        elif not argument.has_default_value():
            raise Unsupported(
                f"The model's forward takes {argument.name!r} of type {kind}; only tensors can be served.",
                hint="Wrap the model in a module whose forward takes tensors, and script that.",
            )
    _check_quantized(module)
    notes = _widened(module)
    inputs = inputs or tuple(arguments)
    call = keyword_call(arguments, inputs, "the model's forward")
    return TorchSource(flat_module(module, call, outputs, inputs), inputs, outputs, notes=notes, inner=module)


def _check_quantized(module: Any) -> None:
    """Raise Unsupported for a model quantised dynamically: its packed weights have no way to ONNX."""
    graph = module.inlined_graph
    if list(graph.findAllNodes("quantized::linear_dynamic")):
        raise Unsupported(
            "This TorchScript model is quantised already (quantized::linear_dynamic), which no ONNX exporter takes.",
            hint="Drop the float model it was made from, with 'target: {precisions: [fp32, int8]}' in the sidecar.",
        )


def _widened(module: torch.nn.Module) -> tuple[str, ...]:
    """Turn bfloat16 weights into float32, which represents them exactly; return a note when there are some."""
    import torch

    if not any(tensor.dtype is torch.bfloat16 for tensor in (*module.parameters(), *module.buffers())):
        return ()
    module.float()
    return ("The weights are stored as bfloat16 and run as float32 on the CPU.",)


def _load_exported_program(path: Path, descriptor: ModelDescriptor) -> TorchSource:
    import torch
    from torch.utils import _pytree as pytree

    try:
        with path.open("rb") as file:
            program = torch.export.load(file)
        module = program.module(check_guards=False)
    except RAISED_BY_MODELS as error:
        raise ModelFailed(
            f"torch cannot load this ExportedProgram: {first_line(error)}.",
            hint="Save it again with torch.export.save, with a torch no newer than this one.",
        ) from error
    slots = list(program.graph_signature.user_inputs)
    arguments = tuple(slot for slot in slots if isinstance(slot, str))
    spec = program.call_spec.in_spec
    inputs, outputs = _names(descriptor)
    inputs = inputs or arguments
    if any(str(tensor.dtype) == "torch.bfloat16" for tensor in (*program.parameters(), *program.buffers())):
        raise Unsupported(
            "This ExportedProgram computes in bfloat16, which ONNX Runtime has no CPU kernels for.",
            hint="Export it again in float32: torch.export.export(model.float(), ...).",
        )
    if len(inputs) != len(arguments):
        raise ModelFailed(
            f"{len(inputs)} inputs are named ({', '.join(inputs)}), but the program takes {', '.join(arguments)}.",
            hint="An ExportedProgram takes exactly the inputs it was exported with.",
        )
    by_name = set(inputs) == set(arguments)

    def call(inner: torch.nn.Module, tensors: Sequence[torch.Tensor]) -> Any:
        given = dict(zip(inputs if by_name else arguments, tensors, strict=True))
        leaves = [given[slot] if isinstance(slot, str) else slot for slot in slots]
        args, kwargs = pytree.tree_unflatten(leaves, spec)
        return inner(*args, **kwargs)

    return TorchSource(flat_module(module, call, outputs, inputs), inputs, outputs, inner=program)


def need_class() -> NeedsInput:
    """Return the question that weights without a class put to a person."""
    return NeedsInput(
        "Which class do these weights belong to?",
        hint="The file holds weights only. Put the Python file of the class beside it and name it in "
        "<filename>.modelium.yaml: 'module: {file: model.py, class_name: Net}'.",
    )
