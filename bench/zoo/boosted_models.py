"""The boosted part of the tabular zoo: XGBoost, LightGBM and CatBoost in their own formats, in joblib and in skops."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path


def models(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield name and file of every model; needs the boosting toolchain."""
    import joblib
    from tabular import boosted_estimators, boosted_files, skops_files

    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield from boosted_files(folder)
        for name, fit in boosted_estimators():
            path = folder / f"{name}.joblib"
            joblib.dump(fit(), path)
            yield name, path
        yield from skops_files(folder)
