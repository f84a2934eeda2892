"""Stand-in for Triton's C++ OpenVINO backend, as a Python-based backend.

What it stands in for: libtriton_openvino.so, which no wheel carries. The server around it is NVIDIA's own. It reads the
configuration as the C++ backend's code does: every input named, element types from its own table, shapes compared,
and with max_batch_size the model reshaped to exactly that batch, so that a batch of another size is an error. Its
OpenVINO is the newest, not the one that release 24.12 carries: that the older one reads the file is not shown by it.
Installed as <backend-directory>/openvino/model.py by setup.sh.
"""

import json
from pathlib import Path

import numpy as np
import openvino as ov
import triton_python_backend_utils as pb_utils

TYPES = {
    "TYPE_BOOL": ov.Type.boolean,
    "TYPE_UINT8": ov.Type.u8,
    "TYPE_UINT16": ov.Type.u16,
    "TYPE_UINT32": ov.Type.u32,
    "TYPE_UINT64": ov.Type.u64,
    "TYPE_INT8": ov.Type.i8,
    "TYPE_INT16": ov.Type.i16,
    "TYPE_INT32": ov.Type.i32,
    "TYPE_INT64": ov.Type.i64,
    "TYPE_FP16": ov.Type.f16,
    "TYPE_FP32": ov.Type.f32,
}
KNOWN = {"INFERENCE_NUM_THREADS", "COMPILATION_NUM_THREADS", "HINT_BF16", "NUM_STREAMS", "PERFORMANCE_HINT"}


def _compare(what, shape, tensor, max_batch):
    dims = tensor["reshape"].get("shape", []) if tensor.get("reshape") else tensor["dims"]
    full = ([max_batch] if max_batch else []) + [int(dim) for dim in dims]
    if len(shape) != len(full):
        raise pb_utils.TritonModelException(f"{what} '{tensor['name']}': the model has {shape}, the config {full}")
    for axis, (have, want) in enumerate(zip(shape, full, strict=True)):
        if have.is_static and want != -1 and not (max_batch and axis == 0) and have.get_length() != want:
            raise pb_utils.TritonModelException(f"{what} '{tensor['name']}': the model has {shape}, the config {full}")


class TritonPythonModel:
    def initialize(self, args):
        cfg = json.loads(args["model_config"])
        if cfg["instance_group"][0]["kind"] != "KIND_CPU":
            raise pb_utils.TritonModelException("openVINO backend supports only CPU device")
        version = Path(args["model_repository"]) / args["model_version"]
        core = ov.Core()
        model = core.read_model(version / (cfg.get("default_model_filename") or "model.xml"))
        self.max_batch = cfg["max_batch_size"]
        parameters = {key: value["string_value"] for key, value in cfg.get("parameters", {}).items()}
        if len(model.inputs) != len(cfg["input"]):
            raise pb_utils.TritonModelException(
                f"configuration expects {len(cfg['input'])} inputs, model provides {len(model.inputs)}"
            )
        for kind, ports in (("input", model.inputs), ("output", model.outputs)):
            found = {port.get_any_name(): port for port in ports}
            for tensor in cfg[kind]:
                if tensor["name"] not in found:
                    raise pb_utils.TritonModelException(
                        f"unexpected inference {kind} '{tensor['name']}', allowed {kind}s are: {sorted(found)}"
                    )
                if tensor["data_type"] not in TYPES:
                    raise pb_utils.TritonModelException(f"unsupported datatype {tensor['data_type']}")
                _compare(kind, found[tensor["name"]].get_partial_shape(), tensor, self.max_batch)
        steps = ov.preprocess.PrePostProcessor(model)
        for tensor in cfg["input"]:
            steps.input(tensor["name"]).tensor().set_element_type(TYPES[tensor["data_type"]])
            if self.max_batch:
                steps.input(tensor["name"]).tensor().set_layout(ov.Layout("N..."))
        for tensor in cfg["output"]:
            steps.output(tensor["name"]).tensor().set_element_type(TYPES[tensor["data_type"]])
        model = steps.build()
        if self.max_batch:
            ov.set_batch(model, self.max_batch)
        config = {key: value.upper() for key, value in parameters.items() if key in KNOWN - {"HINT_BF16"}}
        if parameters.get("HINT_BF16", "").lower() == "yes":
            config["INFERENCE_PRECISION_HINT"] = "bf16"
        self.model = core.compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": 1, **config})
        self.inputs = [tensor["name"] for tensor in cfg["input"]]
        self.outputs = [tensor["name"] for tensor in cfg["output"]]

    def _run(self, feeds):
        rows = next(iter(feeds.values())).shape[0]
        if self.max_batch and rows != self.max_batch:
            raise pb_utils.TritonModelException(
                f"expected requests with batch size '{self.max_batch}', got '{rows}'... this error can be avoided by "
                "setting 'ENABLE_BATCH_PADDING' parameter in model configuration to 'YES' at a performance cost."
            )
        result = self.model(feeds)
        return [np.array(result[name]) for name in self.outputs]

    def execute(self, requests):
        answers = []
        for request in requests:
            feeds = {n: pb_utils.get_input_tensor_by_name(request, n).as_numpy() for n in self.inputs}
            try:
                found = self._run(feeds)
            except pb_utils.TritonModelException as error:
                answers.append(pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error))))
                continue
            want = set(request.requested_output_names())
            tensors = [pb_utils.Tensor(n, v) for n, v in zip(self.outputs, found, strict=True) if n in want]
            answers.append(pb_utils.InferenceResponse(tensors))
        return answers
