"""Stand-in for Triton's C++ onnxruntime backend, as a Python-based backend.

What it stands in for: libtriton_onnxruntime.so, which no wheel carries. The server around it (configuration parser,
schedulers, warm-up, HTTP and gRPC front ends) is NVIDIA's own. Like the C++ backend it refuses at load tensors whose
name, type or shape differ from the model's. Installed as <backend-directory>/onnxruntime/model.py by setup.sh.
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

TRITON = {
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(bfloat16)": "TYPE_BF16",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(bool)": "TYPE_BOOL",
    "tensor(string)": "TYPE_STRING",
}


def _check(kind, declared, actual, max_batch):
    actual = {a.name: a for a in actual}
    missing = set(actual) - {d["name"] for d in declared}
    if missing and kind == "input":
        raise pb_utils.TritonModelException(f"model requires {kind}s {sorted(missing)} absent from config.pbtxt")
    for d in declared:
        a = actual.get(d["name"])
        if a is None:
            raise pb_utils.TritonModelException(
                f"unexpected inference {kind} '{d['name']}', allowed {kind}s are: {sorted(actual)}"
            )
        if TRITON.get(a.type) != d["data_type"]:
            raise pb_utils.TritonModelException(
                f"{kind} '{a.name}': config says {d['data_type']}, model.onnx has {a.type}"
            )
        # The server reshapes what it hands over and takes back, so that the model sees the reshaped dims.
        dims = d["reshape"].get("shape", []) if d.get("reshape") else d["dims"]
        want = ([-1] if max_batch else []) + [int(x) for x in dims]
        have = [x if isinstance(x, int) else -1 for x in a.shape]
        if len(want) != len(have) or any(h != -1 and w != h for w, h in zip(want, have, strict=True)):
            raise pb_utils.TritonModelException(
                f"{kind} '{a.name}': config dims (with batch) {want} do not match model.onnx {have}"
            )


def _strings(array):
    """Return bytes as the str that onnxruntime's Python API wants; the C++ backend hands the bytes over."""
    if array.dtype != object:
        return array
    flat = [v.decode() if isinstance(v, bytes) else v for v in array.ravel()]
    return np.array(flat, dtype=object).reshape(array.shape)


class TritonPythonModel:
    def initialize(self, args):
        cfg = json.loads(args["model_config"])
        version = Path(args["model_repository"]) / args["model_version"]
        path = str(version / (cfg.get("default_model_filename") or "model.onnx"))
        self.session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.max_batch = cfg["max_batch_size"]
        _check("input", cfg["input"], self.session.get_inputs(), self.max_batch)
        _check("output", cfg["output"], self.session.get_outputs(), self.max_batch)
        self.inputs = [i["name"] for i in cfg["input"]]
        self.outputs = [o["name"] for o in cfg["output"]]

    def execute(self, requests):
        feeds = [
            {n: _strings(pb_utils.get_input_tensor_by_name(r, n).as_numpy()) for n in self.inputs} for r in requests
        ]
        sizes = [next(iter(f.values())).shape[0] if self.max_batch else 1 for f in feeds]
        pb_utils.Logger.log_verbose(f"onnxruntime shim batch: {sizes}")
        if self.max_batch and len(requests) > 1:  # the scheduler's batch, run as one
            whole = self.session.run(self.outputs, {n: np.concatenate([f[n] for f in feeds]) for n in self.inputs})
            parts = list(zip(*[np.split(w, np.cumsum(sizes)[:-1]) for w in whole], strict=True))
        else:
            parts = [self.session.run(self.outputs, f) for f in feeds]
        out = []
        for r, p in zip(requests, parts, strict=True):
            want = set(r.requested_output_names())
            out.append(
                pb_utils.InferenceResponse(
                    [pb_utils.Tensor(n, v) for n, v in zip(self.outputs, p, strict=True) if n in want]
                )
            )
        return out
