"""The scikit-learn part of the tabular zoo: every estimator that skl2onnx lists, and pipelines with strings."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path


def models(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield name and file of every model; needs pandas beside scikit-learn to make them, not to run them."""
    import joblib
    from tabular import estimators, pipelines

    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, fit in [*estimators(), *pipelines()]:
            path = folder / f"{name}.joblib"
            joblib.dump(fit(), path)
            yield name, path
