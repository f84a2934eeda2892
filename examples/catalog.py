"""The example models: what each is, and how its job is expected to end. Standard library only."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

DONE = ("deployed", "unchanged")


@dataclass(frozen=True)
class Example:
    """One example: ``path`` is its file or folder, ``states`` the ends its job may have."""

    name: str
    path: str
    about: str
    states: tuple[str, ...] = DONE
    companions: tuple[str, ...] = ()
    has_sidecar: bool = False

    @property
    def sidecar(self) -> str | None:
        """Name of the sidecar beside the model, or None."""
        return f"{self.path}.modelium.yaml" if self.has_sidecar else None


EXAMPLES: tuple[Example, ...] = (
    Example("digits-cnn", "digits-cnn.pt", "a CNN trained on scikit-learn's digits, as TorchScript",
            companions=("digits-cnn.npz",), has_sidecar=True),
    Example("resnet50", "resnet50.pt2", "ResNet-50 with random weights, as an ExportedProgram: for speed"),
    Example("minilm", "minilm", "all-MiniLM-L6-v2 with its real weights, as a Hugging Face folder"),
    Example("breast-cancer", "breast-cancer.joblib", "a scikit-learn pipeline trained on the breast cancer data",
            companions=("breast-cancer.npz",), has_sidecar=True),
    Example("fixed-batch", "fixed-batch.onnx", "an ONNX classifier that takes exactly one row"),
    Example("wine", "wine.pth", "a state_dict whose sidecar names the class in model.py",
            companions=("model.py",), has_sidecar=True),
    Example("wine-weights", "wine-weights.pth", "the same state_dict without a word about its class",
            states=("needs_input",)),
    Example("tiny-llama", "tiny-llama", "a causal language model, for vLLM as it is", states=("unchanged",)),
    Example("hostile", "hostile.pkl", "a pickle that runs a command when it is loaded", states=("quarantined",)),
    Example("truncated", "truncated.pt", "a file whose second half is missing", states=("failed",)),
    Example("empty", "empty.pt", "a file of no bytes", states=("failed",)),
    Example("notes", "notes.onnx", "a text with a model's extension", states=("failed",)),
    Example("model", "model.tar.gz", "weights, class and sidecar in one archive"),
)  # fmt: skip

EXPECTATIONS: dict[str, tuple[str, ...]] = {example.name: example.states for example in EXAMPLES}
"""Name of the example, which is also the name its deployment asks for, to the ends its job may have."""


def example(name: str) -> Example:
    """Return the example of that name. Raises KeyError."""
    return {each.name: each for each in EXAMPLES}[name]


def copy(made: Path, incoming: Path, names: Collection[str] = ()) -> list[Path]:
    """Copy examples out of ``made`` into a watched folder and return where the models are now; no names means all.

    Companions go first, then sidecars, then models, so that each model is complete when it is seen. Each is copied
    under a hidden name and renamed: a watcher sees it whole or not at all.
    """
    chosen = [each for each in EXAMPLES if each.name in names or not names]
    companions = {companion: None for each in chosen for companion in each.companions}
    sidecars = [each.sidecar for each in chosen if each.sidecar]
    for name in (*companions, *sidecars):
        _place(made / name, incoming / name)
    return [_place(made / each.path, incoming / each.path) for each in chosen]


def _place(source: Path, place: Path) -> Path:
    hidden = place.with_name(f".{place.name}")
    if source.is_dir():
        shutil.rmtree(hidden, ignore_errors=True)
        shutil.copytree(source, hidden)
        shutil.rmtree(place, ignore_errors=True)
    else:
        shutil.copyfile(source, hidden)
    return hidden.rename(place)
