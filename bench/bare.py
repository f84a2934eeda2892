"""The bare script to compare with: load, export, optimise, quantise, check; one process, no sandbox, no measuring.

usage: bare.py resnet50.pt2|FOLDER OUT      prints one JSON line: phase to seconds
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")
began = time.perf_counter()
CALIBRATED = 16
"""Rows, as many as the pipeline takes."""
seconds: dict[str, float] = {}


def lap(phase: str) -> None:
    """Give the time since the last lap to ``phase``."""
    global began
    now = time.perf_counter()
    seconds[phase] = round(now - began, 2)
    began = now


import numpy as np  # noqa: E402
import onnx  # noqa: E402
import onnxruntime as ort  # noqa: E402
import torch  # noqa: E402
from onnxruntime.quantization import CalibrationDataReader, quantize_dynamic, quantize_static  # noqa: E402
from onnxruntime.quantization.shape_inference import quant_pre_process  # noqa: E402

source, out = Path(sys.argv[1]), Path(sys.argv[2])
if source.is_dir():
    from transformers import AutoModel
lap("imports")

feeds: dict[str, Any]
if source.is_dir():

    class Plain(torch.nn.Module):
        """Tensors in, tensors out."""

        def __init__(self) -> None:
            super().__init__()
            self.model = AutoModel.from_pretrained(source, attn_implementation="sdpa")

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            """Run."""
            return self.model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)[0]

    module: torch.nn.Module = Plain().eval()
    rows = torch.randint(1000, 2000, (2, 16))
    args = (rows, torch.ones_like(rows), torch.zeros_like(rows))
    names = ["input_ids", "attention_mask", "token_type_ids"]
    axes = {name: {0: "batch", 1: "sequence"} for name in names}
else:
    args = (torch.randn(2, 3, 224, 224),)
    program = torch.export.load(source)
    module = program.module()
    names = ["pixel_values"]
lap("load")
with torch.no_grad():
    expected = module(*args)
expected = expected if isinstance(expected, torch.Tensor) else torch.as_tensor(next(iter(expected)))
lap("reference")
plain, fast, small = out / "plain.onnx", out / "fast.onnx", out / "int8.onnx"
if source.is_dir():
    torch.onnx.export(
        module, args, plain, input_names=names, output_names=["out"], dynamic_axes=axes, opset_version=17, dynamo=False
    )
else:  # the older exporter refuses an exported program's module
    torch.onnx.export(program, (), plain, dynamo=True, external_data=False, opset_version=18, verbose=False)
lap("export")
onnx.checker.check_model(plain)
lap("check")
options = ort.SessionOptions()
options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
options.optimized_model_filepath = str(fast)
ort.InferenceSession(plain, options, providers=["CPUExecutionProvider"])
lap("optimise")
if source.is_dir():
    proto = onnx.load(plain)
    quantize_dynamic(proto, small, per_channel=True, extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT})
else:  # what makes convolutions smaller and faster takes calibration
    pictures = iter([{names[0]: torch.randn(1, 3, 224, 224).numpy()} for _ in range(CALIBRATED)])
    prepared = out / "prepared.onnx"
    quant_pre_process(str(plain), str(prepared))

    class Rows(CalibrationDataReader):
        """Pictures, one at a time."""

        def get_next(self) -> Any:
            """Return the next."""
            return next(pictures, None)

    quantize_static(str(prepared), str(small), Rows(), per_channel=True)
lap("quantise")
feeds = {name: tensor.numpy() for name, tensor in zip(names, args, strict=True)}
for path in (plain, fast, small):
    got = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feeds)[0]
    want = expected.detach().numpy()
    assert np.isfinite(got).all() and got.shape == want.shape, path
    if path != small:
        assert np.allclose(got, want, atol=1e-3, rtol=1e-3), path
lap("numerics")
print(json.dumps(seconds))
