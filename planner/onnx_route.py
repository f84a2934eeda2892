"""Candidates for Triton's onnxruntime backend: the plain graph, the optimised one, and smaller precisions."""

from __future__ import annotations

from planner.setting import Route, Setting, step
from planner.shape_of_work import (
    INT8_LEAST_BYTES,
    matrix_bytes,
    mostly_convolutions,
    newer_than_served,
    not_carried,
    own_precision,
    weight_bytes,
)
from planner.weight_bits import weight_bits, why_so_many
from planner.words import bytes_in_words, operators_in_words
from schemas.catalog import SERVED_OPSET
from schemas.descriptor import Format, ModelDescriptor
from schemas.objective import Objective
from schemas.plan import ORIGINAL, Candidate, Step
from schemas.precision import Precision

MIN_OPSET = 17
"""Older graphs are raised to it: what the optimiser's fusions are written for."""


def onnx_route(setting: Setting, to_onnx: tuple[Step, ...]) -> Route:
    """Return the ONNX candidates; ``to_onnx`` is the export, empty where the model is ONNX already."""
    route = Route()
    if to_onnx:
        _plain(setting, to_onnx, route)
    else:
        _original(setting, route)
    work = setting.work
    if to_onnx and work.trees:
        route.left_out += [
            f"Optimising is left out: {work.trees} becomes one tree operator that holds all its nodes, and there is "
            "nothing around it to fuse.",
            "int8 is left out: trees compare thresholds and have no weight matrices to quantise.",
        ]
        return route
    optimised = (*to_onnx, optimise(setting.descriptor))
    route.candidates.append(
        Candidate(
            id="onnx-optimized",
            format=Format.ONNX,
            precision=own_precision(setting.descriptor),
            steps=optimised,
            reason=f"The same numbers from a tighter graph: the export writes one operator per call of the original"
            f"{_graph(setting.descriptor)}, and the fusions merge the chains among them."
            if to_onnx
            else f"The same numbers from a smaller graph{_graph(setting.descriptor)}: constants folded, operators "
            "fused once and for all instead of at every start.",
        )
    )
    _int8(setting, to_onnx, optimised, route)
    _half(setting, to_onnx, route)
    _int4(setting, optimised, route)
    _int8_weights(setting, optimised, route)
    return route


def optimise(descriptor: ModelDescriptor) -> Step:
    """Return the step that raises the opset, folds and fuses."""
    opset = descriptor.opset if descriptor.format is Format.ONNX and descriptor.opset is not None else MIN_OPSET
    first = "F"
    if opset < MIN_OPSET:
        first = f"Raises opset {opset} to {MIN_OPSET} and f"
    elif opset > SERVED_OPSET:
        first = f"Lowers opset {opset} to {SERVED_OPSET} and f"
    return step(
        "onnx_optimize",
        {"level": "extended", "min_opset": MIN_OPSET},
        f"{first}olds constants and fuses operators offline; no level above extended runs on every CPU.",
        step(
            "onnx_optimize",
            {"level": "basic", "min_opset": MIN_OPSET},
            "If a fusion breaks the graph: only constant folding and the removal of what does nothing.",
        ),
    )


def why_no_int8(setting: Setting) -> str | None:
    """Return the sentence that says why quantising to int8 gains nothing here, None where it may."""
    descriptor, work = setting.descriptor, setting.work
    weights = weight_bytes(descriptor)
    if work.quantised:
        return f"int8 is left out: the model is quantised already ({operators_in_words(work.quantised)})."
    if work.classical:
        return "int8 is left out: a classical estimator spends its time in short vectors, not in big matrices."
    if weights < INT8_LEAST_BYTES:
        return (
            f"int8 is left out: {bytes_in_words(weights)} of weights fit the cache as they are, and below "
            f"{bytes_in_words(INT8_LEAST_BYTES)} quantising the activations costs more than it saves."
        )
    if work.known and not (work.matrices or work.convolutions or work.neural):
        return "int8 is left out: none of the model's operators multiplies by a weight matrix."
    if not work.convolutions and matrix_bytes(descriptor) < INT8_LEAST_BYTES:
        return (
            f"int8 is left out: only {bytes_in_words(matrix_bytes(descriptor))} of the {bytes_in_words(weights)} of "
            "weights are multiplied as matrices, and dynamic int8 leaves the others as they are."
        )
    return None


def _plain(setting: Setting, to_onnx: tuple[Step, ...], route: Route) -> None:
    others = "the only one here" if setting.work.trees else "what the others must beat"
    route.candidates.append(
        Candidate(
            id="onnx",
            format=Format.ONNX,
            precision=own_precision(setting.descriptor),
            steps=to_onnx,
            reason=f"The plain export: the shortest way to something that Triton serves, and {others}.",
        )
    )


def _original(setting: Setting, route: Route) -> None:
    descriptor = setting.descriptor
    if too_new := newer_than_served(descriptor):
        route.left_out.append(f"The original is left out: it has {too_new}, newer than what Triton 24.12 loads.")
        return
    if why := not_carried(descriptor):
        route.left_out.append(f"The original is left out: {why}, which Triton does not carry.")
        return
    opset = f" (opset {descriptor.opset})" if descriptor.opset is not None else ""
    route.candidates.append(
        Candidate(
            id=ORIGINAL,
            format=Format.ONNX,
            precision=own_precision(descriptor),
            steps=(),
            reason=f"It is ONNX already{opset} and can be served as it is; others have to beat it.",
        )
    )


def _int8(setting: Setting, to_onnx: tuple[Step, ...], before: tuple[Step, ...], route: Route) -> None:
    if (why := why_no_int8(setting)) is not None:
        route.left_out.append(why)
        return
    work = setting.work
    weights = weight_bytes(setting.descriptor)
    smaller = weights // (2 if own_precision(setting.descriptor) is Precision.FP16 else 4)
    convolutional = work.known and work.convolutions > 0 and mostly_convolutions(setting.descriptor, work)
    if convolutional:
        held = (
            f"{bytes_in_words(matrix_bytes(setting.descriptor))} of the {bytes_in_words(weights)} of weights are in "
            f"matrix products, beside {work.convolutions:,} convolutions"
            if setting.descriptor.matrix_bytes is not None
            else f"{work.convolutions:,} convolutions hold the weights, against {work.matrices:,} matrix "
            f"product{'' if work.matrices == 1 else 's'}"
        )
        # It prepares the graph itself, and onnxruntime's fused convolutions would only be taken apart again.
        before = to_onnx
        quantise = step(
            "onnx_int8_static",
            weight_bits(setting),
            f"{held}: dynamic int8 leaves convolutions as they are, so the ranges of the activations are calibrated."
            f"{why_so_many(setting)}",
        )
    else:
        quantise = step(
            "onnx_int8",
            {"per_channel": True, "weight_type": "int8", **weight_bits(setting)},
            "One scale per output channel: a single scale per matrix lets one large weight coarsen all the others."
            f"{why_so_many(setting)}",
            step(
                "onnx_int8",
                {"per_channel": False, "weight_type": "int8", **weight_bits(setting)},
                "If an operator takes no scale per channel: one scale per matrix.",
            ),
        )
    matrices = f" of {operators_in_words(work.matrices)}" if work.matrices and not convolutional else ""
    route.candidates.append(
        Candidate(
            id="onnx-int8-static" if convolutional else "onnx-int8",
            format=Format.ONNX,
            precision=Precision.INT8,
            steps=(*before, quantise),
            reason=f"The weights{matrices} shrink from {bytes_in_words(weights)} to about {bytes_in_words(smaller)}. "
            f"{setting.chance(Precision.INT8)}",
        )
    )


def _half(setting: Setting, before: tuple[Step, ...], route: Route) -> None:
    """Half precision saves bytes on a CPU and no time, so it is tried only where that, or a GPU, is the goal."""
    if not setting.allows(Precision.FP16) or own_precision(setting.descriptor) is not Precision.FP32:
        return
    if setting.work.classical or setting.work.quantised:
        return
    if setting.target.hardware == "cpu" and setting.target.objective is not Objective.SIZE:
        route.left_out.append("fp16 is left out: a CPU computes it no faster than fp32, and the objective is not size.")
        return
    convert = step("onnx_fp16", {}, "Half the bytes; inputs and outputs stay float32.")
    weights = weight_bytes(setting.descriptor)
    route.candidates.append(
        Candidate(
            id="onnx-fp16",
            format=Format.ONNX,
            precision=Precision.FP16,
            steps=(*before, convert),
            reason=f"The weights shrink from {bytes_in_words(weights)} to {bytes_in_words(weights // 2)}. "
            f"{setting.chance(Precision.FP16)}",
        )
    )


def _int4(setting: Setting, before: tuple[Step, ...], route: Route) -> None:
    if not setting.allows(Precision.INT4) or why_no_int8(setting) is not None or not setting.work.transformer:
        return
    quantise = step("onnx_int4_weights", {}, "Four bits a weight in blocks with a scale each; arithmetic stays float.")
    route.candidates.append(
        Candidate(
            id="onnx-int4",
            format=Format.ONNX,
            precision=Precision.INT4,
            steps=(*before, quantise),
            reason=f"The matrices' {bytes_in_words(matrix_bytes(setting.descriptor))} shrink to about an eighth. "
            f"{setting.chance(Precision.INT4)}",
        )
    )


def _int8_weights(setting: Setting, before: tuple[Step, ...], route: Route) -> None:
    """Weights alone in int8: nearer to the original than activations in int8 too, and no faster: for size only."""
    if setting.target.objective is not Objective.SIZE or not setting.allows(Precision.INT8):
        return
    if why_no_int8(setting) is not None or not setting.work.transformer:
        return
    store = step("onnx_int8_weights", {}, "Eight bits a weight in blocks with a scale each; arithmetic stays float.")
    route.candidates.append(
        Candidate(
            id="onnx-int8-weights",
            format=Format.ONNX,
            precision=Precision.INT8,
            steps=(*before, store),
            reason=f"A quarter of the bytes, answers nearest to the original's. {setting.chance(Precision.INT8)}",
        )
    )


def _graph(descriptor: ModelDescriptor) -> str:
    number = sum(descriptor.operators.values())
    return f" ({operators_in_words(number)} now)" if number else ""
