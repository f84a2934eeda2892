"""A torch original to TorchScript, for Triton's PyTorch backend."""

from __future__ import annotations

import inspect
import keyword
import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters import torch_export, torch_source
from converters.model_errors import RAISED_BY_MODELS, first_line
from converters.onnx_file import OUTPUT_FOLDER
from converters.silence import quiet
from converters.tensor_sheet import SHEET_FILE, TensorSheet
from converters.torch_program import exported, scripted
from converters.torch_source import TorchSource
from converters.torchscript_runner import MODEL_FILE, TorchScriptRunner
from converters.trace_inputs import TraceCase, trace_cases
from schemas.errors import ConversionFailed
from schemas.evidence import ConversionReport
from schemas.step_io import StepContext, StepOutcome

if TYPE_CHECKING:
    import torch

_UNTRIED = (
    "Written by torch {version}. Triton 24.12 carries a PyTorch of 2.6; whether that one reads every operator in the "
    "file was not tried here."
)


def convert(context: StepContext) -> StepOutcome:
    """Trace input ``model`` and write it as ``model.pt``; arguments of its forward are named as the inputs are.

    The file holds the names of its tensors as an extra file of its own. It travels: weights are constants in
    torch's plain layout. ``torch.jit.optimize_for_inference`` is left out, because it packs weights for the CPU that
    runs it, and such tensors cannot be saved.

    A trace that froze a size is replaced by the graph of torch.export. Raises ConversionFailed when that fails too,
    and where the trace froze a decision; only ever in the sandbox.
    """
    import torch

    context.progress(0.05, "Loading the original")
    source = torch_source.load(context)
    cases = trace_cases(context)
    context.progress(0.2, "Running the original at the sizes to trace")
    sheet = torch_export.sheet_of(context, source, cases[0])
    tensors = torch_export.feeds_of(source, cases[0])
    folder = context.out / OUTPUT_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / MODEL_FILE
    notes = [*source.notes, _UNTRIED.format(version=torch.__version__)]
    context.progress(0.3, "Tracing")
    try:
        counts = _write(context, source, cases, lambda: _traced(source, tensors), "traced module", sheet, file)
    except ConversionFailed as failure:
        context.progress(0.5, "Exporting the graph, since its trace is not the original")
        counts = _again(context, source, cases, tensors, sheet, file, failure)
        notes.append(f"Compiled from the exported graph, because without it: {failure.args[0]}")
    report = ConversionReport(
        operators={kind: count for kind, count in sorted(counts.items()) if not kind.startswith("prim::")},
        inputs=sheet.inputs,
        outputs=sheet.outputs,
        size_bytes=file.stat().st_size,
        notes=tuple(dict.fromkeys(note[:500] for note in notes))[:50],
    )
    context.progress(1.0, "Converted")
    return StepOutcome(report=report, outputs={"model": OUTPUT_FOLDER})


def _write(
    context: StepContext,
    source: TorchSource,
    cases: Sequence[TraceCase],
    make: Callable[[], Any],
    what: str,
    sheet: TensorSheet,
    file: Path,
) -> Counter[str]:
    """Save what ``make`` gives as ``file``, prove it, and return its operators. Raises ConversionFailed."""
    import torch

    try:
        with quiet(), torch.no_grad():
            made = make()
            if context.options.freeze:
                made = torch.jit.freeze(made)
            counts = Counter(node.kind() for node in made.inlined_graph.nodes())
            torch.jit.save(made, file, _extra_files={SHEET_FILE: sheet.model_dump_json()})
    except RAISED_BY_MODELS as error:
        raise ConversionFailed(f"No {what} can be made: {first_line(error)}.") from error
    torch_export.prove_run(source, cases, TorchScriptRunner(file, threads=context.request.threads).run, what)
    return counts


def _again(
    context: StepContext,
    source: TorchSource,
    cases: Sequence[TraceCase],
    tensors: Sequence[torch.Tensor],
    sheet: TensorSheet,
    file: Path,
    first: ConversionFailed,
) -> Counter[str]:
    """Try the exported graph, where sizes are no numbers. Raises ``first`` when that fails too."""
    arguments = argument_names(source.input_names)
    try:
        return _write(
            context,
            source,
            cases,
            lambda: scripted(exported(context, source, tensors), arguments),
            "compiled graph",
            sheet,
            file,
        )
    except ConversionFailed:
        raise first from None


def argument_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return ``names`` as arguments that a Python function can have; those that already are stay as they are.

    Triton finds an input by the name of the argument where every input is one, else by its place in config.pbtxt,
    which is the order here.
    """
    made: list[str] = []
    for name in names:
        plain = re.sub(r"\W", "_", name, flags=re.ASCII)
        plain = f"_{plain}" if not plain.isidentifier() or keyword.iskeyword(plain) or plain == "self" else plain
        while plain in made:
            plain += "_"
        made.append(plain)
    return tuple(made)


def _traced(source: TorchSource, tensors: Sequence[torch.Tensor]) -> Any:
    import torch

    class Served(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = source.module

        def forward(self, *arguments: torch.Tensor) -> Any:
            return self.inner(*arguments)

    # The tracer names the arguments by the signature, and an unnamed list of them would be named by numbers.
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind) for name in ("self", *argument_names(source.input_names))]
    Served.forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    served = Served()
    served.training = False
    with warnings.catch_warnings(), torch_export.without_hooks(source.module):
        warnings.simplefilter("ignore")
        return torch.jit.trace(served, tuple(tensors), check_trace=False)  # type: ignore[no-untyped-call]
