"""The one call of torch.onnx.export that every torch format shares, and the proof that its result runs."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from converters import arrays, fused_attention, graph_interface, onnx_file, streamed_weights
from converters.model_errors import RAISED_BY_MODELS, first_line
from converters.onnx_skeleton import skeleton
from converters.served_interface import as_original, make_servable
from converters.silence import quiet
from converters.tensor_sheet import TensorSheet, known
from converters.torch_source import TorchSource
from converters.trace_inputs import TraceCase, trace_cases
from schemas.descriptor import KnownBy, TensorSpec
from schemas.errors import ConversionFailed, ModelFailed, SizesFrozen
from schemas.step_io import StepContext, StepOutcome
from schemas.step_options import TorchExportOptions

if TYPE_CHECKING:
    import onnx
    import torch

FROZEN_ATOL = 1e-2
FROZEN_RTOL = 1e-2
"""How far apart the graph and the original may be at sizes that were not traced, relative to the output's largest
value. It only tells a frozen axis or swapped inputs from rounding; whether the result is good is parity's decision."""

_OPERATOR = re.compile(r"(?:aten|prims|torchvision|onnx|[a-z_]+)::[A-Za-z_][\w.]*")
_GUARD = re.compile(r"Could not guard on data-dependent|Could not extract specialized|[Cc]onstraints violated")
"""What torch.export says when a size that may change decides something."""
_OVERLOAD = re.compile(r"OpOverload\(op='([\w.]+)'")


def export(context: StepContext, source: TorchSource, *, program: Any = None, notes: Sequence[str] = ()) -> StepOutcome:
    """Export ``source`` by ``context.options`` (TorchExportOptions), prove that the graph runs, and return the outcome.

    ``program`` is an ExportedProgram with the same inputs and outputs in ``source``'s order, for the dynamo exporter
    to take as it is.

    Raises ConversionFailed that names the operator where it is known, or the axis that was fixed.
    """
    options: TorchExportOptions = context.options
    cases = trace_cases(context)
    context.progress(0.2, "Running the original at the sizes to trace")
    names = _output_names(source, cases[0])
    context.progress(0.3, f"Exporting to ONNX with the {options.exporter} exporter, opset {options.opset}")
    scratch = context.out / "export"
    scratch.mkdir(parents=True, exist_ok=True)
    try:
        with quiet():
            if options.exporter == "dynamo":
                model = _dynamo(context, source, program, cases[0], names, scratch / onnx_file.MODEL_FILE)
            else:
                model = _traced(context, source, cases[0], names, scratch / onnx_file.MODEL_FILE)
    except RAISED_BY_MODELS as error:
        raise explain(error, options) from error
    finally:
        shutil.rmtree(scratch)
    descriptor = context.request.descriptor
    assert descriptor is not None
    dropped = graph_interface.restore_inputs(model, descriptor.inputs)
    graph_interface.place_outputs(model, names)
    graph_interface.name_axes(model, descriptor.inputs, descriptor.outputs)
    served = make_servable(model)
    context.progress(0.7, "Saving and checking the ONNX model")
    file = onnx_file.save(model, context.out / onnx_file.OUTPUT_FOLDER)
    onnx_file.check(model)
    model = skeleton(model)
    context.progress(0.8, "Running the ONNX model at sizes that were not traced")
    prove(context, source, cases, file)
    return onnx_file.outcome(context, file, (*source.notes, *notes, *dropped, *served), model)


def feeds_of(source: TorchSource, case: TraceCase) -> tuple[torch.Tensor, ...]:
    """Return the case's inputs as tensors in the order of ``source.input_names``."""
    import torch

    return tuple(torch.from_numpy(np.ascontiguousarray(case.feeds[name])) for name in source.input_names)


def sheet_of(context: StepContext, source: TorchSource, case: TraceCase) -> TensorSheet:
    """Return the tensors of ``source`` in its own order: as the descriptor has them, else as the case shows them."""
    descriptor = context.request.descriptor
    assert descriptor is not None
    given = {spec.name: spec for spec in descriptor.inputs}
    wanted = {spec.name: spec for spec in descriptor.outputs}
    try:
        seen = source.run(dict(zip(source.input_names, feeds_of(source, case), strict=True)))
    except RAISED_BY_MODELS as error:
        raise ModelFailed(f"The original does not run: {first_line(error)}.") from error
    outputs = []
    for name, tensor in seen.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        if name in wanted:
            outputs.append(wanted[name].model_copy(update={"dtype": dtype}))
        else:
            axes = tuple(f"{name}_{axis}" for axis in range(tensor.dim()))
            outputs.append(
                TensorSpec.model_validate({"name": name, "dtype": dtype, "shape": axes, "known_by": KnownBy.PROBE})
            )
    return TensorSheet(
        inputs=tuple(known(given[name]) for name in source.input_names), outputs=tuple(map(known, outputs))
    )


def _output_names(source: TorchSource, case: TraceCase) -> tuple[str, ...]:
    try:
        return tuple(source.run(dict(zip(source.input_names, feeds_of(source, case), strict=True))))
    except RAISED_BY_MODELS as error:
        raise ModelFailed(f"The original does not run: {first_line(error)}.") from error


def _traced(
    context: StepContext, source: TorchSource, case: TraceCase, names: Sequence[str], file: Path
) -> onnx.ModelProto:
    import torch

    descriptor = context.request.descriptor
    assert descriptor is not None
    axes = {
        spec.name: {axis: dim for axis, dim in enumerate(spec.shape) if isinstance(dim, str)}
        for spec in (*descriptor.inputs, *descriptor.outputs)
        if spec.name in source.input_names or spec.name in names
    }
    tensors, module = feeds_of(source, case), source.module
    with torch.no_grad(), without_hooks(source.module):
        if isinstance(source.inner, torch.jit.ScriptModule):
            # The exporter takes a ScriptModule only as the outermost module; its control flow survives this.
            module = torch.jit.trace(module, tensors, check_trace=False)  # type: ignore[no-untyped-call]
        return streamed_weights.traced(
            module,
            tensors,
            file,
            context.out / onnx_file.OUTPUT_FOLDER,
            opset_version=context.options.opset,
            input_names=list(source.input_names),
            output_names=list(names),
            dynamic_axes={name: dims for name, dims in axes.items() if dims},
            custom_opsets={fused_attention.DOMAIN: 1} if getattr(context.options, "attention", "") == "fused" else None,
        )


@contextlib.contextmanager
def without_hooks(module: torch.nn.Module) -> Iterator[None]:
    """Take away the pre-hooks that check the sizes of an ExportedProgram: they cannot be traced, and change nothing."""
    hooked = [part for part in module.modules() if part._forward_pre_hooks and type(part).__name__ == "GraphModule"]
    kept = [dict(part._forward_pre_hooks) for part in hooked]
    for part in hooked:
        part._forward_pre_hooks.clear()
    try:
        yield
    finally:
        for part, hooks in zip(hooked, kept, strict=True):
            part._forward_pre_hooks.update(hooks)


def _dynamo(
    context: StepContext, source: TorchSource, program: Any, case: TraceCase, names: Sequence[str], file: Path
) -> onnx.ModelProto:
    import torch
    from torch.export import Dim

    descriptor = context.request.descriptor
    assert descriptor is not None
    by_name = {spec.name: spec for spec in descriptor.inputs}
    given: dict[str, Any] = {}
    if program is None:
        # AUTO lets torch.export find out which sizes are equal; what it fixes is seen by name_axes afterwards.
        given["args"] = feeds_of(source, case)
        given["dynamic_shapes"] = {
            "tensors": tuple(
                {axis: Dim.AUTO for axis, dim in enumerate(by_name[name].shape) if isinstance(dim, str)}
                for name in source.input_names
            )
        }
    with torch.no_grad():
        exported = torch.onnx.export(
            program if program is not None else source.module,
            **given,
            dynamo=True,
            verbose=False,
            opset_version=context.options.opset,
            input_names=list(source.input_names),
            output_names=list(names),
        )
    if exported is None:
        raise ConversionFailed("The dynamo exporter returned nothing.")
    exported.save(str(file))
    return onnx_file.load(file)


def prove(context: StepContext, source: TorchSource, cases: Sequence[TraceCase], file: Path) -> None:
    """Run the graph on every case. Raises ConversionFailed when it froze an axis or mixed its inputs up."""
    session = onnx_file.session(file, threads=context.request.threads)
    prove_run(source, cases, lambda feeds: onnx_file.run(session, feeds), "exported graph")


def prove_run(
    source: TorchSource, cases: Sequence[TraceCase], run: Callable[[arrays.Arrays], arrays.Arrays], what: str
) -> None:
    """Run ``what`` was made of ``source`` on every case; see :func:`prove`."""
    for number, case in enumerate(cases):
        expected = _expected(source, case)
        if expected is None:
            continue
        where = "the sizes it was traced at" if number == 0 else "sizes it was not traced at"
        try:
            got = as_original(run(case.feeds), expected)
        except ModelFailed as error:
            kind = SizesFrozen if number else ConversionFailed
            raise kind(f"At {where}, the {what} does not run: {error.args[0]}") from error
        for name, wanted in expected.items():
            if name not in got:
                continue
            if got[name].shape != wanted.shape:
                raise SizesFrozen(
                    f"At {where}, output {name!r} of the {what} is {got[name].shape}, "
                    f"the original's is {wanted.shape}: the exporter froze a size.",
                    hint="Sizes read into Python numbers (int(x.shape[1]), len(x)) do that.",
                )
            if not _near(got[name], wanted):
                _check_repeatable(source, case, name)
                raise ConversionFailed(
                    f"At {where}, output {name!r} of the {what} is far from the original's.",
                    hint="The exporter froze a decision that depends on the input, such as an if on a tensor's value.",
                )


def _check_repeatable(source: TorchSource, case: TraceCase, name: str) -> None:
    """Raise ModelFailed when the original contradicts itself: then no conversion of it can be shown to be right."""
    fresh = TraceCase(case.feeds)
    first, second = _expected(source, fresh), _expected(source, fresh)
    if first is not None and second is not None and not _near(first[name], second[name]):
        raise ModelFailed(
            f"The original answers the same input differently each time (output {name!r}), so no conversion of it can "
            "be proven.",
            hint="Dropout left on, random numbers, or state kept from call to call do that. Call model.eval() before "
            "tracing or exporting, and save it again.",
        )


def _expected(source: TorchSource, case: TraceCase) -> arrays.Arrays | None:
    """Return the original's outputs, or None when it does not take these sizes itself."""
    if case.expected is not None:
        return case.expected
    try:
        tensors = source.run(dict(zip(source.input_names, feeds_of(source, case), strict=True)))
    except RAISED_BY_MODELS:
        return None
    return {name: _array(tensor) for name, tensor in tensors.items()}


def _array(tensor: torch.Tensor) -> arrays.Array:
    import torch

    plain = tensor.float() if tensor.dtype is torch.bfloat16 else tensor
    array: arrays.Array = plain.numpy()
    return array


def _near(got: arrays.Array, wanted: arrays.Array) -> bool:
    if wanted.dtype.kind not in "fiu" or not wanted.size:
        return bool(np.array_equal(got, wanted)) if wanted.dtype.kind in "bU" else True
    scale = float(np.nanmax(np.abs(np.where(np.isfinite(wanted), wanted, 0)))) if wanted.size else 0.0
    return bool(
        np.allclose(
            got.astype(np.float64),
            wanted.astype(np.float64),
            rtol=FROZEN_RTOL,
            atol=FROZEN_ATOL * scale,
            equal_nan=True,
        )
    )


def explain(error: Exception, options: TorchExportOptions) -> ConversionFailed:
    """Return what ``error`` of an exporter means to a person; names the operator where the text has it."""
    texts = []
    link: BaseException | None = error
    while link is not None:
        texts.append(str(link))
        link = link.__cause__ or link.__context__
    for text in texts:
        if "not supported" not in text and "No ONNX function" not in text and "No decompositions" not in text:
            continue
        overload = _OVERLOAD.search(text)
        found = _OPERATOR.search(text)
        name = overload[1].replace(".", "::", 1) if overload else found[0] if found else ""
        if name:
            return ConversionFailed(
                f"The operator {name} is not supported by the {options.exporter} ONNX exporter at opset "
                f"{options.opset}.",
                hint="Replace it in the model by operators that ONNX has.",
                operator=name,
            )
    # The first cause tells more than the wrapper's advice on how to report a bug.
    reason = next((text for text in reversed(texts) if text.strip()), type(error).__name__)
    kind = SizesFrozen if _GUARD.search(reason) else ConversionFailed
    return kind(f"The {options.exporter} exporter failed: {first_line(RuntimeError(reason))}.")
