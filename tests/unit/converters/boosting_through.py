"""Take models of the zoo from file to parity, without a sandbox, and print a JSON line for each.

Runs in the interpreter of the boosting toolchain, with the checkout and ``bench/zoo`` on the path:
``python -P boosting_through.py FOLDER``.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import boosted_models
import sklearn_models

from analyzer import describe
from converters import boosting_onnx, sklearn_onnx
from converters.parity import parity
from converters.probe import probe
from converters.reference import reference
from schemas.catalog import parse_options
from schemas.descriptor import Format, ModelDescriptor
from schemas.errors import ModeliumError
from schemas.step_io import StepContext, StepRequest


def _words(text: str) -> list[str]:
    return text.split()


_PIPELINES = _words(
    "strings-onehot-logistic strings-hist-categories strings-text-column strings-imputed strings-labels "
    "texts-tfidf-bigrams gaps-iterative gaps-indicator function-log1p targets-multioutput targets-forest scaled-forest"
)


def step(
    folder: Path, kind: str, descriptor: ModelDescriptor, options: Mapping[str, Any] | None = None, **inputs: Path
) -> StepContext:
    """Return a step's context in a folder of its own, its inputs linked into it."""
    workspace = folder / kind
    (workspace / "out").mkdir(parents=True)
    for name, path in inputs.items():
        (workspace / name).symlink_to(path)
    request = StepRequest(
        kind=kind, options=dict(options or {}), inputs={name: name for name in inputs}, descriptor=descriptor
    )
    return StepContext(request, workspace, parse_options(kind, request.options))


def through(path: Path, folder: Path) -> dict[str, Any]:
    """Analyse, probe, convert and compare one model; return what came out."""
    report = describe(path)
    if report.refusal is not None:
        return {"state": report.refusal.code, "reason": report.refusal.message}
    try:
        probed: Any = probe(step(folder, "probe", report.descriptor, model=path)).report
        descriptor: ModelDescriptor = probed.descriptor
        reference(step(folder, "reference", descriptor, model=path))
        truth = folder / "reference" / "out" / "reference"
        own = descriptor.format in (Format.XGBOOST, Format.LIGHTGBM, Format.CATBOOST)
        kind, converter = ("boosting_onnx", boosting_onnx) if own else ("sklearn_onnx", sklearn_onnx)
        converter.convert(step(folder, kind, descriptor, model=path, reference=truth))
        model = folder / kind / "out" / "model"
        compared: Any = parity(
            step(folder, "parity", descriptor, {"precision": "fp32"}, model=model, reference=truth)
        ).report
    except ModeliumError as error:
        return {"state": error.code, "reason": str(error)}
    return {
        "state": "passed" if compared.passed else "parity",
        "reason": compared.reason,
        "inputs": [(spec.name, spec.dtype, spec.shape) for spec in descriptor.inputs],
        "outputs": [(spec.name, spec.dtype, spec.shape) for spec in descriptor.outputs],
        "batches": compared.batching.holds,
        "max_abs": max((output.max_abs or 0.0 for output in compared.outputs), default=0.0),
    }


def main(folder: Path) -> None:
    """Make the models and take each through."""
    warnings.simplefilter("ignore")
    (folder / "models").mkdir(parents=True)
    pipelines = ((name, fit) for name, fit in sklearn_models.pipelines() if name in _PIPELINES)
    import joblib

    def files() -> Any:
        for name, fit in chain(pipelines, boosted_models.boosted_estimators()):
            joblib.dump(fit(), folder / "models" / name)
            yield name, folder / "models" / name

    for name, path in chain(
        files(), boosted_models.skops_files(folder / "models"), boosted_models.boosted_files(folder / "models")
    ):
        print(json.dumps({"name": name, **through(path, folder / f"through-{name}")}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
