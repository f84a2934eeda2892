"""The rules planner: a plan without a language model. Every number in its sentences comes from the descriptor."""

from __future__ import annotations

from planner.exports import export_step
from planner.shape_of_work import (
    INT8_LEAST_BYTES,
    Work,
    mostly_convolutions,
    newer_than_served,
    own_precision,
    weight_bytes,
    work_of,
)
from planner.words import bytes_in_words, count_in_words, model_in_words, operators_in_words
from schemas.catalog import CATALOG, SERVED_OPSET
from schemas.descriptor import Format, ModelDescriptor
from schemas.errors import Unsupported
from schemas.plan import ORIGINAL, Candidate, ConversionPlan, Step
from schemas.target import Objective, Precision, TargetProfile

PLANNER = "rules"
MIN_OPSET = 17
"""Older graphs are raised to it: what the optimiser's fusions are written for."""
_GOAL = {
    Objective.LATENCY: "the least latency",
    Objective.THROUGHPUT: "the most rows per second",
    Objective.SIZE: "the fewest bytes",
}
_UNSERVED_HINT = {
    Format.TORCH_MODULE: "Save it with torch.jit.save(torch.jit.script(model), path) or torch.export.save, "
    "or save model.state_dict() and name the class in a sidecar.",
    Format.PICKLE: "Export the model to ONNX where it was trained, or save it with joblib as a scikit-learn estimator.",
    Format.ARCHIVE: "Unpack it and drop the folder or the model file inside.",
}


def plan(descriptor: ModelDescriptor, target: TargetProfile) -> ConversionPlan:
    """Return the candidates worth trying, each with its reason. Raises Unsupported for a format nothing converts."""
    work = work_of(descriptor)
    if descriptor.format is Format.ONNX:
        candidates, left_out = _from_onnx(descriptor, target, work)
    else:
        candidates, left_out = _from_export(descriptor, target, work)
    goal = (
        f"{model_in_words(descriptor)} is to be served on a {target.hardware.upper()} by Triton's onnxruntime backend "
        f"with {_GOAL[target.objective]}{_batches(target)}."
    )
    number = len(candidates)
    tried = f"{count_in_words(number)} {'candidate is' if number == 1 else 'candidates are'} tried."
    return ConversionPlan(
        planner=PLANNER,
        reason=_cut(" ".join(part for part in (goal, tried, *left_out) if part), 1000),
        target=target,
        candidates=candidates,
    )


def _from_onnx(
    descriptor: ModelDescriptor, target: TargetProfile, work: Work
) -> tuple[tuple[Candidate, ...], list[str]]:
    precision = own_precision(descriptor)
    optimise = _optimise(descriptor)
    too_new = newer_than_served(descriptor)
    candidates = (
        []
        if too_new
        else [
            Candidate(
                id=ORIGINAL,
                format=Format.ONNX,
                precision=precision,
                steps=(),
                reason=f"It is ONNX already{_opset(descriptor)} and can be served as it is; others have to beat it.",
            )
        ]
    )
    candidates += [
        Candidate(
            id="onnx-optimized",
            format=Format.ONNX,
            precision=precision,
            steps=(optimise,),
            reason=f"The same numbers from a smaller graph{_graph(descriptor)}: constants folded, operators fused once "
            "and for all instead of at every start.",
        ),
    ]
    int8, left_out = _int8(descriptor, target, work, (optimise,))
    if too_new:
        left_out = [f"The original is left out: it has {too_new}, newer than what Triton 24.12 loads.", *left_out]
    return tuple(candidates) + int8, left_out


def _from_export(
    descriptor: ModelDescriptor, target: TargetProfile, work: Work
) -> tuple[tuple[Candidate, ...], list[str]]:
    export = export_step(descriptor)
    if export is None:
        raise Unsupported(
            f"There is no way from {descriptor.format.value} to a format that the target serves.",
            hint=_UNSERVED_HINT.get(
                descriptor.format, "Export the model to ONNX where it was trained and drop the .onnx file."
            ),
        )
    precision = own_precision(descriptor)
    others = "the only one here" if work.trees else "what the others must beat"
    plain = Candidate(
        id="onnx",
        format=Format.ONNX,
        precision=precision,
        steps=(export,),
        reason=f"The plain export: the shortest way to something that Triton serves, and {others}.",
    )
    if work.trees:
        left_out = [
            f"Optimising is left out: {work.trees} becomes one tree operator that holds all its nodes, and there is "
            "nothing around it to fuse.",
            "int8 is left out: trees compare thresholds and have no weight matrices to quantise.",
        ]
        return (plain,), left_out
    optimise = _optimise(descriptor)
    optimised = Candidate(
        id="onnx-optimized",
        format=Format.ONNX,
        precision=precision,
        steps=(export, optimise),
        reason=f"The same numbers from a tighter graph: the export writes one operator per call of the original"
        f"{_graph(descriptor)}, and the fusions merge the chains among them.",
    )
    int8, left_out = _int8(descriptor, target, work, (export, optimise))
    return (plain, optimised, *int8), left_out


def _optimise(descriptor: ModelDescriptor) -> Step:
    kind = CATALOG["onnx_optimize"]
    opset = descriptor.opset if descriptor.format is Format.ONNX and descriptor.opset is not None else MIN_OPSET
    first = "F"
    if opset < MIN_OPSET:
        first = f"Raises opset {opset} to {MIN_OPSET} and f"
    elif opset > SERVED_OPSET:
        first = f"Lowers opset {opset} to {SERVED_OPSET} and f"
    return Step(
        kind=kind.kind,
        toolchain=kind.toolchains[0],
        options={"level": "extended", "min_opset": MIN_OPSET},
        reason=f"{first}olds constants and fuses operators offline; no level above extended runs on every CPU.",
        fallbacks=(
            Step(
                kind=kind.kind,
                toolchain=kind.toolchains[0],
                options={"level": "basic", "min_opset": MIN_OPSET},
                reason="If a fusion breaks the graph: only constant folding and the removal of what does nothing.",
            ),
        ),
    )


def _int8(
    descriptor: ModelDescriptor, target: TargetProfile, work: Work, before: tuple[Step, ...]
) -> tuple[tuple[Candidate, ...], list[str]]:
    """Return the int8 candidate, or the sentence that says why there is none."""
    weights = weight_bytes(descriptor)
    if work.quantised:
        return (), [f"int8 is left out: the model is quantised already ({operators_in_words(work.quantised)})."]
    if descriptor.format is Format.SKLEARN and not work.neural:
        return (), ["int8 is left out: a classical estimator spends its time in short vectors, not in big matrices."]
    touched = weights if descriptor.matrix_bytes is None else min(descriptor.matrix_bytes, weights)
    if weights < INT8_LEAST_BYTES:
        return (), [
            f"int8 is left out: {bytes_in_words(weights)} of weights fit the cache as they are, and below "
            f"{bytes_in_words(INT8_LEAST_BYTES)} quantising the activations costs more than it saves."
        ]
    if work.known and work.convolutions and mostly_convolutions(descriptor, work):
        held = (
            f"{bytes_in_words(touched)} of the {bytes_in_words(weights)} of weights are in matrix products, beside "
            f"{work.convolutions:,} convolutions"
            if descriptor.matrix_bytes is not None
            else f"{work.convolutions:,} convolutions hold the weights, against {work.matrices:,} matrix "
            f"product{'' if work.matrices == 1 else 's'}"
        )
        return (), [f"int8 is left out: {held}, and dynamic int8 leaves convolutions as they are."]
    if work.known and not work.matrices and not work.neural:
        return (), ["int8 is left out: none of the model's operators multiplies by a weight matrix."]
    if touched < INT8_LEAST_BYTES:
        return (), [
            f"int8 is left out: only {bytes_in_words(touched)} of the {bytes_in_words(weights)} of weights are "
            "multiplied as matrices, and dynamic int8 leaves the others as they are."
        ]
    kind = CATALOG["onnx_int8"]
    allowed = Precision.INT8 in target.precisions
    may_win = (
        "It wins only if real samples show that the answers hold."
        if allowed
        else "It is measured and shown, but cannot win: the target allows "
        f"{' and '.join(precision.value for precision in target.precisions)} only."
    )
    matrices = f" of {operators_in_words(work.matrices)}" if work.matrices else ""
    smaller = weights // (2 if own_precision(descriptor) is Precision.FP16 else 4)
    step = Step(
        kind=kind.kind,
        toolchain=kind.toolchains[0],
        options={"per_channel": True, "weight_type": "int8"},
        reason="One scale per output channel: a single scale per matrix lets one large weight coarsen all the others.",
        fallbacks=(
            Step(
                kind=kind.kind,
                toolchain=kind.toolchains[0],
                options={"per_channel": False, "weight_type": "int8"},
                reason="If an operator takes no scale per channel: one scale per matrix.",
            ),
        ),
    )
    candidate = Candidate(
        id="onnx-int8",
        format=Format.ONNX,
        precision=Precision.INT8,
        steps=(*before, step),
        reason=f"The weights{matrices} shrink from {bytes_in_words(weights)} to about {bytes_in_words(smaller)}. "
        f"{may_win}",
    )
    return (candidate,), []


def _batches(target: TargetProfile) -> str:
    if target.objective is Objective.LATENCY:
        return f" at batch {target.batch_sizes[0]}"
    if target.objective is Objective.THROUGHPUT:
        return f" at the best of batch {', '.join(str(size) for size in target.batch_sizes)}"
    return ""


def _opset(descriptor: ModelDescriptor) -> str:
    return f" (opset {descriptor.opset})" if descriptor.opset is not None else ""


def _graph(descriptor: ModelDescriptor) -> str:
    number = sum(descriptor.operators.values())
    return f" ({operators_in_words(number)} now)" if number else ""


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"
