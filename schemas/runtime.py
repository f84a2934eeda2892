"""Runtime: what serves a model."""

from __future__ import annotations

from enum import StrEnum


class Runtime(StrEnum):
    """What serves the model. ``triton`` leaves the choice among Triton's backends to the measurement."""

    TRITON = "triton"
    TRITON_ONNXRUNTIME = "triton-onnxruntime"
    TRITON_OPENVINO = "triton-openvino"
    TRITON_PYTORCH = "triton-pytorch"
    TRITON_TENSORRT = "triton-tensorrt"
    TENSORRT_RTX = "tensorrt-rtx"
    VLLM = "vllm"
    LLAMA_CPP = "llama-cpp"
