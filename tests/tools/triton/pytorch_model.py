"""Stand-in for Triton's C++ PyTorch (libtorch) backend, as a Python-based backend.

What it stands in for: libtriton_pytorch.so, which no wheel carries. The server around it is NVIDIA's own. It reads the
configuration as the C++ backend's code does: inputs by the names of forward's arguments where all are, else by
``NAME__<index>`` where all are, else in the order of config.pbtxt; outputs by index, else in that order; a model gives
a tensor or a tuple of tensors. Its torch is the newest, not the 2.6 that release 24.12 carries: that an old libtorch
reads the file is not shown by it. Installed as <backend-directory>/pytorch/model.py by setup.sh.
"""

import json
import warnings
from pathlib import Path

import numpy as np
import torch
import triton_python_backend_utils as pb_utils

TYPES = {
    "TYPE_BOOL": torch.bool,
    "TYPE_UINT8": torch.uint8,
    "TYPE_INT8": torch.int8,
    "TYPE_INT16": torch.int16,
    "TYPE_INT32": torch.int32,
    "TYPE_INT64": torch.int64,
    "TYPE_FP16": torch.float16,
    "TYPE_FP32": torch.float32,
    "TYPE_FP64": torch.float64,
}


def _indices(names, allowed=None):
    """Return the model's position for each name of the configuration."""
    if allowed is not None and all(name in allowed for name in names):
        return [allowed.index(name) for name in names]
    parts = [name.partition("__") for name in names]
    if all(found and (not index or index.isdigit()) for _, found, index in parts):
        return [int(index or 0) for _, _, index in parts]
    return list(range(len(names)))


class TritonPythonModel:
    def initialize(self, args):
        cfg = json.loads(args["model_config"])
        if cfg.get("platform") not in ("pytorch_libtorch", "libtorch", ""):
            raise pb_utils.TritonModelException(f"unexpected platform {cfg.get('platform')!r}")
        version = Path(args["model_repository"]) / args["model_version"]
        torch.set_num_threads(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.model = torch.jit.load(version / (cfg.get("default_model_filename") or "model.pt"), map_location="cpu")
        for kind in ("input", "output"):
            for tensor in cfg[kind]:
                if tensor["data_type"] not in TYPES:
                    raise pb_utils.TritonModelException(
                        f"unsupported datatype {tensor['data_type']} for {kind} '{tensor['name']}'"
                    )
        # Arguments of a traced module carry a counter behind a dot; the schema's names do not.
        arguments = [argument.name for argument in self.model.forward.schema.arguments[1:]]
        if len(arguments) != len(cfg["input"]):
            raise pb_utils.TritonModelException(f"forward takes {arguments}")
        self.inputs = [tensor["name"] for tensor in cfg["input"]]
        self.outputs = [tensor["name"] for tensor in cfg["output"]]
        self.types = {tensor["name"]: TYPES[tensor["data_type"]] for tensor in cfg["output"]}
        self.places = _indices(self.inputs, arguments)
        self.gives = _indices(self.outputs)
        self.max_batch = cfg["max_batch_size"]
        self.inference_mode = cfg.get("parameters", {}).get("INFERENCE_MODE", {}).get("string_value") == "true"

    def _run(self, feeds):
        given = [None] * len(self.inputs)
        for name, place in zip(self.inputs, self.places, strict=True):
            given[place] = torch.from_numpy(np.ascontiguousarray(feeds[name]))
        with torch.inference_mode(self.inference_mode), torch.no_grad():
            result = self.model(*given)
        results = (result,) if isinstance(result, torch.Tensor) else result
        if not isinstance(results, tuple):
            raise pb_utils.TritonModelException("output must be of type Tensor, List[str] or Tuple")
        found = []
        for name, index in zip(self.outputs, self.gives, strict=True):
            if index >= len(results):
                raise pb_utils.TritonModelException(f"The output {name} refers to an output index which doesn't exist")
            if results[index].dtype != self.types[name]:
                raise pb_utils.TritonModelException(f"output '{name}' is {results[index].dtype}, not as configured")
            found.append(results[index].numpy())
        return found

    def execute(self, requests):
        answers = []
        feeds = [{n: pb_utils.get_input_tensor_by_name(r, n).as_numpy() for n in self.inputs} for r in requests]
        sizes = [next(iter(f.values())).shape[0] if self.max_batch else 1 for f in feeds]
        if self.max_batch and len(requests) > 1:  # the scheduler's batch, run as one
            whole = self._run({n: np.concatenate([f[n] for f in feeds]) for n in self.inputs})
            parts = list(zip(*[np.split(w, np.cumsum(sizes)[:-1]) for w in whole], strict=True))
        else:
            parts = [self._run(f) for f in feeds]
        for request, part in zip(requests, parts, strict=True):
            want = set(request.requested_output_names())
            tensors = [pb_utils.Tensor(n, v) for n, v in zip(self.outputs, part, strict=True) if n in want]
            answers.append(pb_utils.InferenceResponse(tensors))
        return answers
