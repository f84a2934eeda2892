"""Families of the zoo: who makes their models, in which toolchain, and how most of them are tried."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Way = Literal["pipeline", "steps"]
HERE = Path(__file__).parent
CHECKOUT = HERE.parent.parent


@dataclass(frozen=True)
class Family:
    """One family. ``maker`` is a module here with ``models(folder)``; the models run in ``toolchain``."""

    id: str
    title: str
    maker: str
    toolchain: str = "torch"
    made_in: str = ""
    """Toolchain that ``maker`` runs in, where it is another."""
    way: Way = "pipeline"
    """``steps``: the same step functions in one process, without sandbox, measuring and publishing."""
    pipeline_every: int = 1
    """Of a family that is tried by steps, one model in so many goes through the whole pipeline."""


FAMILIES: dict[str, Family] = {
    family.id: family
    for family in (
        Family("transformers", "transformers architectures", "transformers_models"),
        Family("sklearn", "scikit-learn estimators and pipelines", "sklearn_models", "sklearn", made_in="boosting"),
        Family("boosting", "XGBoost, LightGBM, CatBoost, skops", "boosted_models", "boosting"),
        Family("torch", "torch modules", "torch_models"),
        Family("tensorflow", "Keras, SavedModel, TFLite", "tensorflow_models", "tensorflow"),
        Family("onnx", "ONNX backend tests", "onnx_models", "onnx", way="steps", pipeline_every=100),
    )
}

_MAKE = """
import importlib, sys
sys.path[:0] = [sys.argv[1]]
from pathlib import Path
module = importlib.import_module(sys.argv[2])
for name, path in module.models(Path(sys.argv[3])):
    print("made", name, path, sep="\\t", flush=True)
"""


def make(family: Family, interpreter: Path, folder: Path, log: Path) -> Iterator[tuple[str, Path]]:
    """Write the family's models below ``folder`` in its toolchain; yield each name and path as it is made.

    Raises RuntimeError that names the log when the maker ends badly.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [interpreter, "-P", "-c", _MAKE, HERE, family.maker, folder]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}
    with log.open("w") as errors:
        made = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        assert made.stdout is not None
        try:
            for line in made.stdout:
                mark, _, rest = line.rstrip("\n").partition("\t")
                if mark == "made":
                    name, _, path = rest.partition("\t")
                    yield name, Path(path)
        finally:
            made.stdout.close()
            if made.poll() is None:
                made.wait(timeout=60)
    if made.returncode:
        raise RuntimeError(f"The maker of {family.id} ended with {made.returncode}; see {log}.")
