from __future__ import annotations

import onnxruntime
import pytest
from onnx import TensorProto, helper

from converters.onnx_gpu import CUDA, cuda_providers, require_cuda
from schemas.errors import Unsupported

pytestmark = pytest.mark.torch


def session(providers: list[str]) -> onnxruntime.InferenceSession:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=providers)


def test_a_session_that_fell_back_to_the_cpu_is_no_gpu_session() -> None:
    with pytest.raises(Unsupported, match="no GPU that it can use"):
        require_cuda(session(["CPUExecutionProvider"]))


@pytest.mark.skipif(CUDA in onnxruntime.get_available_providers(), reason="this onnxruntime has CUDA")
def test_an_onnxruntime_without_cuda_is_said_to_be_one() -> None:
    with pytest.raises(Unsupported, match="built without CUDA"):
        cuda_providers()


@pytest.mark.gpu
def test_a_gpu_session_is_one() -> None:
    if CUDA not in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime-gpu is not installed")
    require_cuda(session(cuda_providers()))
