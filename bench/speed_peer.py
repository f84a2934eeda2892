"""What one peer makes of one model, in the peer's own environment: every variant it has that may be fast on a CPU.

usage: speed_peer.py optimum|olive MODEL OUT SAMPLES FILE     prints one JSON line: variant to ONNX file or error
"""

from __future__ import annotations

import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

OPSET = 17
_INT8 = {"per_channel": True}
_HAS_VNNI = any(flag in Path("/proc/cpuinfo").read_text() for flag in ("avx512_vnni", "avx_vnni", "amx_int8"))
"""Without it 8-bit products overflow on x86; each peer has an option for such CPUs, which is then used."""
_IMAGES = "pixel_values"
found: dict[str, dict[str, str]] = {}


def tried(variant: str, work: Callable[[], Path]) -> Path | None:
    """Run ``work`` and keep its file, or its error, as ``variant``."""
    try:
        file = work()
        if not file.is_file():
            raise FileNotFoundError(f"it says that it succeeded and wrote no {file.name}")
        found[variant] = {"file": str(file)}
        return file
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a peer raises is its answer
        traceback.print_exc()
        found[variant] = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]}
        return None


def optimum(model: Path, out: Path, samples: Path, name: str) -> None:
    """Export, let its optimiser at level O3 at it, and quantise both ways."""
    from optimum.exporters.onnx import main_export

    task = _task(model)

    def export(level: str | None) -> Path:
        folder = out / (level or "export")
        main_export(str(model), folder, task=task, opset=OPSET, do_validation=False, device="cpu", optimize=level)
        return folder / name

    def config(*, is_static: bool) -> Any:
        from optimum.onnxruntime.configuration import AutoQuantizationConfig

        made = AutoQuantizationConfig.avx512_vnni if _HAS_VNNI else AutoQuantizationConfig.avx2
        return made(is_static=is_static, **_INT8)

    plain = tried("fp32", lambda: export(None))
    tried("o3", lambda: export("O3"))
    if plain is None:
        return

    def dynamic() -> Path:
        from optimum.onnxruntime import ORTQuantizer

        quantizer = ORTQuantizer.from_pretrained(plain.parent, file_name=name)
        quantizer.quantize(config(is_static=False), out / "dynamic")
        return out / "dynamic" / name.replace(".onnx", "_quantized.onnx")

    def static() -> Path:
        import numpy as np
        from datasets import Dataset
        from optimum.onnxruntime import ORTQuantizer
        from optimum.onnxruntime.configuration import AutoCalibrationConfig

        rows = Dataset.from_dict({_IMAGES: list(np.load(samples)[_IMAGES])})
        quantizer = ORTQuantizer.from_pretrained(plain.parent, file_name=name)
        calibration = AutoCalibrationConfig.minmax(rows)
        chosen = config(is_static=True)
        kinds = chosen.operators_to_quantize
        ranges = quantizer.fit(dataset=rows, calibration_config=calibration, operators_to_quantize=kinds)
        quantizer.quantize(chosen, out / "static", calibration_tensors_range=ranges)
        return out / "static" / name.replace(".onnx", "_quantized.onnx")

    tried("int8-dynamic", dynamic)
    if _has_images(samples):
        tried("int8-static", static)


def olive(model: Path, out: Path, samples: Path, name: str) -> None:
    """Convert, optimise and quantise with its own passes, one workflow for each variant."""
    from olive.workflows import run

    source: dict[str, Any] = {"type": "HfModel", "model_path": str(model), "task": _task(model)}
    if _has_images(samples):
        # Left to itself it fixes images at 64 x 64.
        source["io_config"] = {
            "input_names": [_IMAGES], "input_shapes": [_image_shape(samples)], "output_names": ["logits"],
            "dynamic_axes": {_IMAGES: {"0": "batch"}, "logits": {"0": "batch"}},
        }  # fmt: skip
    conversion = {"type": "OnnxConversion", "target_opset": OPSET}
    fused = {"type": "OrtTransformersOptimization", "opt_level": 1}
    int8 = {**_INT8, "reduce_range": not _HAS_VNNI}

    def workflow(variant: str, passes: dict[str, Any], data: list[dict[str, Any]] | None = None) -> Path:
        folder = out / variant
        config = {"input_model": source, "passes": passes, "output_dir": str(folder), "log_severity_level": 4}
        run({**config, "data_configs": data or [], "cache_dir": str(out / "cache")})
        return next(iter(sorted(folder.rglob("*.onnx"))), folder / name)

    def static() -> Path:
        data = _raw_images(samples, out / "raw")
        quantize = {"type": "OnnxStaticQuantization", "data_config": "calibration", "activation_type": "uint8", **int8}
        return workflow("static", {"conversion": conversion, "quantize": quantize}, [data])

    tried("fp32", lambda: workflow("fp32", {"conversion": conversion, "tidy": {"type": "OnnxPeepholeOptimizer"}}))
    dynamic = {"type": "OnnxDynamicQuantization", **int8}
    if _has_images(samples):
        tried("int8-static", static)
    else:
        tried("fused", lambda: workflow("fused", {"conversion": conversion, "fuse": fused}))
        tried("int8-dynamic", lambda: workflow("dynamic", {"conversion": conversion, "quantize": dynamic}))
        passes = {"conversion": conversion, "fuse": fused, "quantize": dynamic}
        tried("fused-int8", lambda: workflow("fused-int8", passes))


def _has_images(samples: Path) -> bool:
    import numpy as np

    return _IMAGES in np.load(samples).files


def _image_shape(samples: Path) -> list[int]:
    import numpy as np

    return [1, *np.load(samples)[_IMAGES].shape[1:]]


def _raw_images(samples: Path, folder: Path) -> dict[str, Any]:
    import numpy as np

    rows = np.load(samples)[_IMAGES]
    (folder / _IMAGES).mkdir(parents=True, exist_ok=True)
    for number, row in enumerate(rows):
        row[None].tofile(folder / _IMAGES / f"{number:03d}.raw")
    given = {"data_dir": str(folder), "input_names": [_IMAGES], "input_shapes": [_image_shape(samples)]}
    return {"name": "calibration", "type": "RawDataContainer", "load_dataset_config": {"params": given}}


def _task(model: Path) -> str:
    import transformers
    from optimum.exporters.tasks import TasksManager

    name = json.loads((model / "config.json").read_text())["architectures"][0]
    task: str = TasksManager.infer_task_from_model(getattr(transformers, name))
    return task


def main() -> None:
    """Try all variants of one peer."""
    warnings.simplefilter("ignore")
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the libraries print is no answer
    peer, model, out, samples, name = sys.argv[1:6]
    {"optimum": optimum, "olive": olive}[peer](Path(model), Path(out), Path(samples), name)
    print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    main()
