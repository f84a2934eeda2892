"""Candidates for Triton's OpenVINO backend."""

from __future__ import annotations

from planner.onnx_route import optimise, why_no_int8
from planner.setting import Route, Setting, step
from planner.shape_of_work import own_precision, weight_bytes
from planner.weight_bits import weight_bits, why_so_many
from planner.words import bytes_in_words
from schemas.descriptor import Format
from schemas.plan import ORIGINAL, Candidate, Step
from schemas.precision import Precision

_TOOLCHAIN = "openvino"


def openvino_route(setting: Setting, to_onnx: tuple[Step, ...]) -> Route:
    """Return the OpenVINO candidates; ``to_onnx`` is the export, empty where the model is ONNX or OpenVINO already."""
    route, descriptor = Route(), setting.descriptor
    if _TOOLCHAIN not in setting.toolchains:
        route.left_out.append("OpenVINO is left out: its toolchain is not installed (make setup TOOLCHAINS=openvino).")
        return route
    if setting.work.classical and descriptor.format is not Format.OPENVINO:
        route.left_out.append("OpenVINO is left out: it has none of the operators of classical estimators.")
        return route
    base: tuple[Step, ...] = ()
    if descriptor.format is Format.OPENVINO:
        route.candidates.append(
            Candidate(
                id=ORIGINAL,
                format=Format.OPENVINO,
                precision=own_precision(descriptor),
                steps=(),
                reason="It is OpenVINO's own format already and can be served as it is; others have to beat it.",
            )
        )
    else:
        base = (*to_onnx, optimise_lightly(setting), step("onnx_openvino", {}, "OpenVINO compiles it for this CPU."))
        _fp32(setting, base, route)
    if setting.work.quantised:
        return route
    _bf16(setting, base, route)
    if why_no_int8(setting) is None:
        _int8(setting, base, route)
        _int4(setting, base, route)
    return route


def optimise_lightly(setting: Setting) -> Step:
    """Return the step that folds constants only: OpenVINO knows none of onnxruntime's fused operators."""
    whole = optimise(setting.descriptor)
    return whole.fallbacks[0].model_copy(
        update={"reason": "Folds constants; OpenVINO fuses by itself and knows none of onnxruntime's fused operators."}
    )


def _fp32(setting: Setting, base: tuple[Step, ...], route: Route) -> None:
    if "amx_bf16" in setting.cpu_flags:
        route.left_out.append(
            "OpenVINO in fp32 is left out: on a CPU with AMX it computes float32 graphs in bfloat16, and Triton's "
            "backend has no way to forbid it."
        )
        return
    route.candidates.append(
        Candidate(
            id="openvino",
            format=Format.OPENVINO,
            precision=own_precision(setting.descriptor),
            steps=base,
            reason="The same numbers by another compiler, which is often the fastest one on a CPU.",
        )
    )


def _bf16(setting: Setting, base: tuple[Step, ...], route: Route) -> None:
    if not setting.allows(Precision.BF16) or own_precision(setting.descriptor) is not Precision.FP32:
        return
    if setting.cpu_flags and not setting.cpu_flags & {"amx_bf16", "avx512_bf16", "bf16"}:
        route.left_out.append("bf16 is left out: this CPU has no units for it.")
        return
    route.candidates.append(
        Candidate(
            id="openvino-bf16",
            format=Format.OPENVINO,
            precision=Precision.BF16,
            steps=(*base, step("openvino_bf16", {}, "The same file; products are computed in bfloat16.")),
            reason=f"CPUs with bfloat16 units multiply twice as fast in it. {setting.chance(Precision.BF16)}",
        )
    )


def _int4(setting: Setting, base: tuple[Step, ...], route: Route) -> None:
    if not setting.allows(Precision.INT4) or not setting.work.transformer:
        return
    compress = step("openvino_weights4", {}, "Four bits a weight in groups with a scale each; arithmetic stays float.")
    route.candidates.append(
        Candidate(
            id="openvino-int4",
            format=Format.OPENVINO,
            precision=Precision.INT4,
            steps=(*base, compress),
            reason=f"Reading weights is what a batch of one waits for. {setting.chance(Precision.INT4)}",
        )
    )


def _int8(setting: Setting, base: tuple[Step, ...], route: Route) -> None:
    if not setting.allows(Precision.INT8):
        route.left_out.append("OpenVINO's int8 is left out: the target does not allow it, so it could not win.")
        return
    weights = weight_bytes(setting.descriptor)
    quantise = step(
        "openvino_int8",
        weight_bits(setting),
        "Weights and activations in int8, ranges calibrated on real rows, hard layers smoothed or left in float."
        f"{why_so_many(setting)}",
    )
    route.candidates.append(
        Candidate(
            id="openvino-int8",
            format=Format.OPENVINO,
            precision=Precision.INT8,
            steps=(*base, quantise),
            reason=f"The weights shrink from {bytes_in_words(weights)} to about {bytes_in_words(weights // 4)}. "
            f"{setting.chance(Precision.INT8)}",
        )
    )
