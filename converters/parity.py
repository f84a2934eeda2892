"""Parity: a candidate compared with the original's reference, output by output, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from converters.accuracy import accuracy
from converters.arrays import Arrays
from converters.batching import ROWS_AT_ONCE, has_batch_axis, no_batch_axis, prove, row_count, run_rows, take
from converters.class_outputs import class_outputs
from converters.comparison import Difference, compare, gather, token_outputs
from converters.reference import folder_of, rows_at_once
from converters.reference_cases import REAL, SAMPLES, Reference
from converters.runners import Runner, descriptor_of, load_candidate, load_original
from converters.sampling import ROWS_AXIS
from converters.served_interface import as_original, holds_nothing, same_rank
from converters.ties import settled
from schemas.descriptor import BATCH_AXIS, Dim, ModelDescriptor, TensorSpec
from schemas.errors import ModelFailed
from schemas.evidence import BatchProof, OutputParity, ParityReport, ReferenceCase
from schemas.precision import Precision
from schemas.step_io import StepContext, StepOutcome
from schemas.step_options import ParityOptions
from schemas.target import TargetProfile, Tolerance

_LOSSY = frozenset(Precision) - {Precision.FP32}
_PROVEN_CASES = 8
"""Batch sizes at which rows are also run one by one."""

Found = dict[str, list[tuple[str, bool, Difference]]]


def parity(context: StepContext) -> StepOutcome:
    """Run the candidate on every case of the reference and compare each output with the original's of that name.

    A candidate that does not load, run or fit is a failed report with its reason, not an error.
    """
    options: ParityOptions = context.options
    descriptor = descriptor_of(context)
    target = context.request.target or TargetProfile()
    lossy = options.precision in _LOSSY
    reference = Reference.open(folder_of(context))
    tolerance = _tolerance(target, options.precision, reference.report.arithmetic)
    context.progress(0.05, "loading the candidate")
    try:
        runner = _load(context, options, descriptor)
    except ModelFailed as error:
        return StepOutcome(report=_unloaded(error, options, tolerance, reference))
    reason = _misfit(runner, descriptor, reference)
    found: Found = {}
    ran: list[tuple[ReferenceCase, Arrays, Arrays]] = []
    share: float | None = None
    tokens = token_outputs(descriptor.task, reference.report.outputs)
    classes = class_outputs(context, descriptor, reference.report.outputs)
    vectors = frozenset(s.name for s in reference.report.outputs if len(s.shape) == 1 and not _leads_with_rows(s))
    names = (context.request.sidecar.labels if context.request.sidecar else ()) or descriptor.labels
    total = len(reference.report.cases)
    for number, (case, feeds, expected) in enumerate(reference.cases() if not reason else ()):
        context.progress(0.1 + 0.7 * number / total, f"comparing on {case.id}")
        try:
            given = as_original(run_rows(runner.run, feeds, rows_at_once(descriptor)), expected)
        except ModelFailed as error:
            reason = f"It does not run on case {case.id} ({_sizes(case)}), which the original does: {error.args[0]}"
            break
        judged = settled(expected, given)
        for name, array in expected.items():
            difference = compare(
                array,
                judged[name],
                tolerance,
                lossy=lossy,
                classes=name in classes,
                tokens=name in tokens,
                vector=name in vectors,
            )
            found.setdefault(name, []).append((case.id, case.source in REAL, difference))
        if case.id == SAMPLES and (labels := reference.labels()) is not None:
            share = accuracy(given, labels, names)
        if case.source in REAL or 1 < row_count(feeds) <= rows_at_once(descriptor):
            ran.append((case, feeds, given))
    outputs, failure = _joined(found, tolerance, lossy)
    reason = reason or failure
    if failure and not reference.report.deterministic:
        reason = f"{failure} The original gives other answers itself when it runs again."
    context.progress(0.85, "running rows one by one")
    batching = _batching(runner, descriptor, reference, ran, tolerance, lossy) if not reason else _not_tried(reason)
    inputs, served = (
        _served(runner.inputs, descriptor.inputs, batching),
        _served(runner.outputs, reference.report.outputs, batching),
    )
    report = ParityReport(
        passed=not reason,
        reason=(reason or _praise(outputs, reference.report.cases))[:500],
        precision=options.precision,
        tolerance=tolerance,
        outputs=outputs,
        cases=reference.report.cases,
        real_samples=any(case.source in REAL for case in reference.report.cases),
        batching=batching,
        accuracy=share,
        inputs=inputs,
        served_outputs=served,
    )
    return StepOutcome(report=report)


def _tolerance(target: TargetProfile, precision: Precision, arithmetic: Precision) -> Tolerance:
    """Return what holds for a candidate of ``precision`` beside an original that computes in ``arithmetic``.

    A candidate that is not lossy itself can come no nearer than the original's own roundings let it. How near stands
    in the tolerance of that float; everywhere, by the formula, and labels must agree as ever.
    """
    tolerance = target.tolerance(precision)
    if precision in _LOSSY or arithmetic is Precision.FP32:
        return tolerance
    coarse = target.tolerance(arithmetic)
    return tolerance.model_copy(
        update={"atol": max(tolerance.atol, coarse.atol), "rtol": max(tolerance.rtol, coarse.rtol)}
    )


def _load(context: StepContext, options: ParityOptions, descriptor: ModelDescriptor) -> Runner:
    """Load the candidate; the original itself, where the target serves it, is found as its descriptor says."""
    if options.original:
        return load_original(context)
    return load_candidate(context.input("model"), options.format, threads=context.request.threads)


def _unloaded(error: ModelFailed, options: ParityOptions, tolerance: Tolerance, reference: Reference) -> ParityReport:
    reason = f"It does not load: {error.args[0]}"[:500]
    return ParityReport(
        passed=False,
        reason=reason,
        precision=options.precision,
        tolerance=tolerance,
        outputs=(),
        cases=reference.report.cases,
        real_samples=any(case.source in REAL for case in reference.report.cases),
        batching=_not_tried(reason),
        inputs=(),
        served_outputs=(),
    )


def _misfit(runner: Runner, descriptor: ModelDescriptor, reference: Reference) -> str:
    """Return why names, dtypes or ranks of the candidate cannot be the original's; empty when they fit."""
    for what, mine, theirs in (
        ("input", runner.inputs, descriptor.inputs),
        ("output", runner.outputs, reference.report.outputs),
    ):
        have, want = [spec.name for spec in mine], [spec.name for spec in theirs]
        missing = [s.name for s in theirs if s.name not in have and not (what == "input" and holds_nothing(s))]
        extra = [n for n in have if n not in want]
        if missing or extra:
            parts = [f"lacks {what} {n!r}" for n in missing[:3]] + [
                f"has an {what} {n!r} of its own" for n in extra[:3]
            ]
            return f"It {' and '.join(parts)}; the original's are {', '.join(want)}."[:500]
    known = {spec.name: spec for spec in descriptor.inputs}
    for spec in runner.inputs:
        if not same_rank(spec, known[spec.name]):
            return (
                f"Its input {spec.name!r} has {len(spec.shape)} axes where the original's has "
                f"{len(known[spec.name].shape)}."
            )
    return ""


def _joined(found: Found, tolerance: Tolerance, lossy: bool) -> tuple[tuple[OutputParity, ...], str]:
    outputs, failure = [], ""
    for name, differences in found.items():
        output, why = gather(name, differences, tolerance, lossy=lossy)
        outputs.append(output)
        failure = failure or why
    return tuple(outputs), failure


def _batching(
    runner: Runner,
    descriptor: ModelDescriptor,
    reference: Reference,
    ran: Sequence[tuple[ReferenceCase, Arrays, Arrays]],
    tolerance: Tolerance,
    lossy: bool,
) -> BatchProof:
    if not reference.report.batching.holds:
        reason = f"The original's own rows do not stand alone: {reference.report.batching.reason}"
        return reference.report.batching.model_copy(update={"reason": reason[:500]})
    for specs in (descriptor.inputs, reference.report.outputs):
        if not has_batch_axis(specs):
            return no_batch_axis(specs)
    for spec in (*runner.inputs, *runner.outputs):
        if spec.shape and isinstance(spec.shape[0], int):
            return BatchProof(holds=False, reason=f"The candidate has {spec.name!r} fixed at {spec.shape[0]} rows.")
    try:
        return prove(runner.run, _together(runner, ran, lossy), tolerance, lossy=lossy)
    except ModelFailed as error:
        return BatchProof(holds=False, reason=f"Rows together do not run: {error.args[0]}"[:500])


def _together(
    runner: Runner, ran: Sequence[tuple[ReferenceCase, Arrays, Arrays]], lossy: bool
) -> list[tuple[Arrays, Arrays]]:
    """Return inputs and outputs of rows that went together: one case of every batch size.

    Of a lossy candidate they are rows of a real case where there is one, as everywhere: on noise, what int8 rounds away
    depends on the rows beside it far more than it does in service.
    """
    real = max((feeds for case, feeds, _ in ran if case.source in REAL), key=row_count, default=None)
    by_size: dict[int, tuple[Arrays, Arrays]] = {}
    for _, feeds, given in ran:
        count = row_count(feeds)
        if count in by_size or not 1 < count <= ROWS_AT_ONCE or len(by_size) == _PROVEN_CASES:
            continue
        if lossy and real is not None:
            feeds = take(real, np.arange(count) % row_count(real))
            given = runner.run(feeds)
        by_size[count] = (feeds, given)
    return list(by_size.values())


def _leads_with_rows(spec: TensorSpec) -> bool:
    return bool(spec.shape) and spec.shape[0] in (BATCH_AXIS, ROWS_AXIS)


def _not_tried(reason: str) -> BatchProof:
    return BatchProof(holds=False, reason=f"Not tried, as the candidate failed: {reason}"[:500])


def _served(own: Sequence[TensorSpec], originals: Sequence[TensorSpec], batching: BatchProof) -> tuple[TensorSpec, ...]:
    """Return the candidate's specs with the original's names for dynamic axes; ``batch`` leads only where it is proven.

    Where the graph says nothing of an axis and the original's is fixed, it is served fixed, unless its size is 0:
    servers carry tensors that hold nothing, and refuse axes that are declared so.
    """
    known: Mapping[str, TensorSpec] = {spec.name: spec for spec in originals}
    served = []
    for spec in own:
        original = known.get(spec.name)
        dims: list[Dim] = []
        for axis, dim in enumerate(spec.shape):
            if isinstance(dim, str) and original is not None and len(original.shape) == len(spec.shape):
                dim = original.shape[axis] or dim
            if axis == 0 and isinstance(dim, str) and dim == BATCH_AXIS and not batching.holds:
                dim = ROWS_AXIS
            dims.append(dim)
        served.append(spec.model_copy(update={"shape": tuple(dims)}))
    return tuple(served)


def _praise(outputs: Sequence[OutputParity], cases: Sequence[ReferenceCase]) -> str:
    parts = []
    for output in outputs[:4]:
        if output.method == "agreement":
            parts.append(f"{output.name} agrees in {output.agreement:.2%} of values")
        else:
            figure = f" (cosine {output.cosine:.5f})" if output.cosine is not None else ""
            parts.append(f"{output.name} differs by at most {output.max_abs:.2g}{figure}")
    more = f" and {len(outputs) - 4} more outputs" if len(outputs) > 4 else ""
    return f"Over {len(cases)} cases, {', '.join(parts)}{more}."


def _sizes(case: ReferenceCase) -> str:
    return ", ".join(f"{axis} {size}" for axis, size in case.axes.items()) or "fixed sizes"
