"""Candidates for NVIDIA GPUs: TensorRT plans for Triton, and engines of TensorRT for RTX."""

from __future__ import annotations

from planner.openvino_route import optimise_lightly
from planner.setting import Route, Setting, step
from planner.shape_of_work import own_precision
from schemas.descriptor import Format
from schemas.plan import Candidate, Step
from schemas.precision import Precision
from schemas.runtime import Runtime

_KINDS = {
    Runtime.TENSORRT_RTX: ("onnx_tensorrt_rtx", "tensorrt_rtx", Format.TENSORRT_RTX),
    Runtime.TRITON_TENSORRT: ("onnx_tensorrt", "tensorrt", Format.TENSORRT),
}


def tensorrt_route(setting: Setting, to_onnx: tuple[Step, ...]) -> Route:
    """Return the engines to build; each is built from a graph that is proven here."""
    kind, toolchain, format_ = _KINDS[setting.target.runtime]
    route = Route()
    if toolchain not in setting.toolchains:
        how = (
            f"make setup TOOLCHAINS={toolchain}" if toolchain == "tensorrt_rtx" else "it needs a GPU and its libraries"
        )
        route.left_out.append(f"TensorRT is left out: its toolchain {toolchain} is not installed ({how}).")
        return route
    if setting.work.classical:
        route.left_out.append("TensorRT is left out: it has none of the operators of classical estimators.")
        return route
    if kind == "onnx_tensorrt_rtx" and not setting.target.gpu_architectures:
        route.left_out.append("The target names no GPU: write `gpu_architectures: [sm_86]` beside its runtime.")
        return route
    graph = (*to_onnx, optimise_lightly(setting))
    build = step(kind, {}, "Built for the GPUs that the target names, with the sizes that the model was seen to run.")
    own = own_precision(setting.descriptor)
    route.candidates.append(
        Candidate(
            id="tensorrt",
            format=format_,
            precision=own,
            steps=(*graph, build),
            reason="The engine of the graph as it is; answers are shown for that graph on a CPU.",
        )
    )
    if setting.allows(Precision.FP16) and own is Precision.FP32:
        halve = step("onnx_fp16", {}, "TensorRT is strongly typed: the graph itself is made half precision.")
        route.candidates.append(
            Candidate(
                id="tensorrt-fp16",
                format=format_,
                precision=Precision.FP16,
                steps=(*graph, halve, build),
                reason=f"GPUs multiply half precision several times as fast. {setting.chance(Precision.FP16)}",
            )
        )
    return route
