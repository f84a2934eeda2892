"""The questions put to a person: about weights without code, whole pickled modules, inputs without shapes."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from analyzer.draft import clean
from analyzer.onnx_values import Value
from schemas.descriptor import BATCH_AXIS
from schemas.errors import NeedsInput, Unsupported


def which_class(what: str, count: int, shapes: str) -> NeedsInput:
    """Ask for the class of bare weights; the hint is the sidecar to write, word by word."""
    return NeedsInput(
        f"Which class do these weights belong to? This file is {what} of {count} tensors ({shapes}) and holds no code.",
        hint=(
            "Beside <filename>, put the Python file that defines the class, say model.py, and a sidecar "
            "<filename>.modelium.yaml that says:\n"
            "module:\n  file: model.py\n  class_name: Net\n  args: {}\n"
            "Then drop all three. TorchScript or torch.export files need no sidecar."
        ),
    )


def which_shapes(values: Sequence[Value]) -> NeedsInput:
    """Ask for the shapes of an ONNX graph's inputs of which one declares none; the others stand as they are."""
    bare = next(value for value in values if value.axes is None)
    lines = "\n".join(
        f"- {{name: {_yaml(value.name)}, dtype: {value.dtype or 'float32'}, shape: [{_example(value)}]}}"
        for value in values
    )
    return NeedsInput(
        f"What shape does input {clean(bare.name, 80)!r} take? This ONNX file declares none, not even how many axes it "
        "has, and a server has to be told.",
        hint="Write it into <filename>.modelium.yaml, or modelium.yaml inside a folder, with your own sizes, and names "
        f"for axes that change:\ninputs:\n{lines}",
    )


def _yaml(name: str) -> str:
    plain = clean(name, 80)
    return plain if re.fullmatch(r"[A-Za-z_][\w.:/-]*", plain) else json.dumps(plain, ensure_ascii=False)


def _example(value: Value) -> str:
    axes: Sequence[int | str] = (BATCH_AXIS, 64) if value.axes is None else value.axes
    if value.axes is None and "sequence" in value.held_in:
        axes = ("count", 64)
    return ", ".join(str(axis) or f"axis_{number}" for number, axis in enumerate(axes))


def whole_module(class_name: str) -> Unsupported:
    """Say how to save a model whose pickle torch's restricted unpickler does not read: plain pickles, old formats."""
    return Unsupported(
        f"This file is a whole PyTorch module (class {clean(class_name, 120)}) in a pickle that can't be loaded "
        "without running whatever it asks for.",
        hint=(
            "Save it as a program instead, where it was trained:\n"
            "program = torch.export.export(model.eval(), (example_input,))\n"
            "torch.export.save(program, 'model.pt2')"
        ),
    )
