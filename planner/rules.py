"""The rules planner: a plan without a language model. Every number in its sentences comes from the descriptor."""

from __future__ import annotations

from collections.abc import Container

from planner.exports import export_step
from planner.onnx_route import onnx_route
from planner.openvino_route import openvino_route
from planner.setting import DEFAULT_TOOLCHAINS, Route, Setting
from planner.tensorrt_route import tensorrt_route
from planner.torch_route import torch_route
from planner.words import count_in_words, model_in_words
from schemas.descriptor import Format, ModelDescriptor
from schemas.errors import Unsupported
from schemas.objective import Objective
from schemas.plan import ORIGINAL, ConversionPlan, Step
from schemas.runtime import Runtime
from schemas.target import TargetProfile

PLANNER = "rules"
_GOAL = {
    Objective.LATENCY: "the least latency",
    Objective.THROUGHPUT: "the most rows per second",
    Objective.SIZE: "the fewest bytes",
}
_SERVER = {
    Runtime.TRITON: "Triton, by whichever of its backends is best,",
    Runtime.TRITON_ONNXRUNTIME: "Triton's onnxruntime backend",
    Runtime.TRITON_OPENVINO: "Triton's OpenVINO backend",
    Runtime.TRITON_PYTORCH: "Triton's PyTorch backend",
    Runtime.TRITON_TENSORRT: "Triton's TensorRT backend",
    Runtime.TENSORRT_RTX: "TensorRT for RTX",
    Runtime.VLLM: "vLLM",
    Runtime.LLAMA_CPP: "llama.cpp",
}
_UNSERVED_HINT = {
    Format.OPENVINO: "Triton's OpenVINO backend serves it: write `target: {runtime: triton-openvino}` into "
    "its sidecar, or give --runtime triton-openvino.",
    Format.TORCH_MODULE: "Save it with torch.jit.save(torch.jit.script(model), path) or torch.export.save, "
    "or save model.state_dict() and name the class in a sidecar.",
    Format.PICKLE: "Export the model to ONNX where it was trained, or save it with joblib as a scikit-learn estimator.",
}


def plan(
    descriptor: ModelDescriptor,
    target: TargetProfile,
    toolchains: Container[str] = DEFAULT_TOOLCHAINS,
    cpu_flags: frozenset[str] = frozenset(),
) -> ConversionPlan:
    """Return the candidates worth trying, each with its reason.

    Args:
        toolchains: Those that are installed.
        cpu_flags: The processor's features as Linux names them; none where they are not known.

    Raises Unsupported for a format that nothing converts to what the target serves.
    """
    setting = Setting(descriptor, target, toolchains, cpu_flags)
    route = _route(setting)
    if not route.candidates:
        raise Unsupported(
            f"There is no way from {descriptor.format.value} to what {target.runtime.value} serves.",
            hint=" ".join(route.left_out)
            or _UNSERVED_HINT.get(descriptor.format)
            or "Export the model to ONNX where it was trained and drop the .onnx file.",
        )
    goal = (
        f"{model_in_words(descriptor)} is to be served on a {target.hardware.upper()} by {_SERVER[target.runtime]} "
        f"with {_GOAL[target.objective]}{_batches(target)}."
    )
    number = len(route.candidates)
    tried = f"{count_in_words(number)} {'candidate is' if number == 1 else 'candidates are'} tried."
    return ConversionPlan(
        planner=PLANNER,
        reason=_cut(" ".join(part for part in (goal, tried, *route.left_out) if part), 1000),
        target=target,
        candidates=tuple(route.candidates),
    )


def _route(setting: Setting) -> Route:
    route, runtime = Route(), setting.target.runtime
    fused = _to_onnx(setting.descriptor, fused=True)
    if fused is not None and runtime in (Runtime.TRITON, Runtime.TRITON_ONNXRUNTIME):
        route.add(onnx_route(setting, fused))
    reaches = fused is not None or setting.descriptor.format is Format.OPENVINO
    if reaches and runtime in (Runtime.TRITON, Runtime.TRITON_OPENVINO):
        # The same export serves both: OpenVINO reads onnxruntime's attention, and one operator is what it fuses best.
        route.add(openvino_route(setting, fused or ()))
    plain = _to_onnx(setting.descriptor)
    if plain is not None and runtime in (Runtime.TENSORRT_RTX, Runtime.TRITON_TENSORRT):
        route.add(tensorrt_route(setting, plain))
    if runtime in (Runtime.TRITON, Runtime.TRITON_PYTORCH):
        route.add(torch_route(setting))
    # The original stands first, whichever backend serves it.
    route.candidates.sort(key=lambda candidate: candidate.id != ORIGINAL)
    return route


def _to_onnx(descriptor: ModelDescriptor, *, fused: bool = False) -> tuple[Step, ...] | None:
    """Return the steps to an ONNX graph, none where it is one, None where there is no way."""
    if descriptor.format is Format.ONNX:
        return ()
    export = export_step(descriptor, fused=fused)
    return None if export is None else (export,)


def _batches(target: TargetProfile) -> str:
    if target.objective is Objective.LATENCY:
        return f" at batch {target.batch_sizes[0]}"
    if target.objective is Objective.THROUGHPUT:
        return f" at the best of batch {', '.join(str(size) for size in target.batch_sizes)}"
    return ""


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"
