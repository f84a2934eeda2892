"""The questions put to a person about weights without code, and about whole pickled modules."""

from __future__ import annotations

from analyzer.draft import clean
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
