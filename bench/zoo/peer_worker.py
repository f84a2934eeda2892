"""One peer at work, in its own environment: reads ``{"path": ..., "out": ...}`` a line, writes what it said of it.

With ``reference`` in place of ``out`` it is asked whether its transformers has the original at all.

usage: peer_worker.py optimum|olive
"""

from __future__ import annotations

import json
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

OPSET = 17
_LAST = {"text2text-generation": 0, "feature-extraction": 2}
"""Of tasks to try, which come before and after the others."""


def optimum(model: Path, out: Path) -> None:
    """Export a Hugging Face folder as ``optimum-cli export onnx`` does: with the task its class is for, else with any
    task that Optimum lists for that kind of model.
    """
    from optimum.exporters.onnx import main_export
    from optimum.exporters.tasks import TasksManager

    kind = json.loads((model / "config.json").read_text())["model_type"]
    try:
        listed = TasksManager.get_supported_tasks_for_model_type(kind, "onnx", library_name="transformers")
    except (KeyError, ValueError):
        listed = {}
    others = sorted((task for task in listed if "with-past" not in task), key=lambda task: _LAST.get(task, 1))
    first: Exception | None = None
    for task in dict.fromkeys((_task(model), *others)):
        try:
            main_export(str(model), out, task=task, opset=OPSET, do_validation=False, device="cpu")
            return
        except Exception as error:  # noqa: BLE001 - the next task may do
            first = first or error
    if first is not None:
        raise first


def olive(model: Path, out: Path) -> None:
    """Convert a Hugging Face folder, or optimise an ONNX file, with Olive's own passes."""
    from olive.workflows import run

    if (model / "config.json").is_file():
        source = {"type": "HfModel", "model_path": str(model), "task": _task(model)}
        passes = {"conversion": {"type": "OnnxConversion", "target_opset": OPSET}}
    else:
        source = {"type": "ONNXModel", "model_path": str(model / "model.onnx" if model.is_dir() else model)}
        passes = {"optimise": {"type": "OnnxPeepholeOptimizer"}}
    config = {"input_model": source, "passes": passes, "output_dir": str(out), "log_severity_level": 4}
    run({**config, "cache_dir": str(out.parent / "olive-cache")})


def _task(model: Path) -> str:
    import transformers
    from optimum.exporters.tasks import TasksManager

    name = json.loads((model / "config.json").read_text())["architectures"][0]
    try:
        task: str = TasksManager.infer_task_from_model(getattr(transformers, name))
    except ValueError:
        return "auto"
    return task


def stranger(model: Path, reference: Path) -> str:
    """Return why this environment's transformers does not even have the original, '' when it does.

    A folder that a later version wrote may load with weights missing or compute something else; no peer can help that.
    """
    import numpy as np
    import torch
    import transformers

    name = json.loads((model / "config.json").read_text())["architectures"][0]
    if not hasattr(transformers, name):
        return f"transformers {transformers.__version__} has no {name}"
    try:
        loaded, told = getattr(transformers, name).from_pretrained(model, output_loading_info=True)
    except Exception as error:  # noqa: BLE001 - any reason is one
        return f"transformers {transformers.__version__} does not load it: {type(error).__name__}"
    if told["missing_keys"] or told["mismatched_keys"]:
        return f"transformers {transformers.__version__} does not find all weights"
    with np.load(reference / "trace.inputs.npz") as given, np.load(reference / "trace.outputs.npz") as wanted:
        feeds = {key: torch.from_numpy(given[key]) for key in given.files}
        with torch.no_grad():
            answers = loaded.eval()(**feeds, return_dict=True)
        for key in wanted.files:
            value = answers.get(key)
            if isinstance(value, torch.Tensor) and not np.allclose(value.numpy(), wanted[key], rtol=1e-3, atol=1e-3):
                return f"transformers {transformers.__version__} itself gives another {key}"
    return ""


def main() -> None:
    """Answer lines until there are none."""
    warnings.simplefilter("ignore")
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the libraries print is no answer
    work = {"optimum": optimum, "olive": olive}[sys.argv[1]]
    for line in sys.stdin:
        asked = json.loads(line)
        told: dict[str, Any] = {"error": ""}
        try:
            if "reference" in asked:
                told["stranger"] = stranger(Path(asked["path"]), Path(asked["reference"]))
            else:
                work(Path(asked["path"]), Path(asked["out"]))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a peer raises is its answer
            told["error"] = f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]
            traceback.print_exc()
        print(json.dumps(told), file=answers, flush=True)


if __name__ == "__main__":
    main()
