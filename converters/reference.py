"""Reference: what the original gives, computed before any export can touch it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from converters.accuracy import accuracy
from converters.arrays import Array, Arrays, dtype_name
from converters.batching import (
    ROWS_AT_ONCE,
    fixed_rows,
    has_batch_axis,
    no_batch_axis,
    prove,
    row_count,
    run_rows,
    take,
)
from converters.domain import Domain
from converters.reference_cases import REAL, SAMPLES, TRACE, write_case, write_report
from converters.runners import Runner, descriptor_of, load_original
from converters.sampling import (
    ROWS_AXIS,
    example_sizes,
    random_feeds,
    sentence_feeds,
    sidecar_samples,
    sizes_of,
)
from converters.whole_sample import holds, is_whole
from schemas.descriptor import BATCH_AXIS, KnownBy, ModelDescriptor, TensorSpec
from schemas.errors import ModelFailed
from schemas.evidence import BatchProof, ReferenceCase, ReferenceReport, SampleSource
from schemas.precision import Precision
from schemas.step_io import StepContext, StepOutcome
from schemas.step_options import ReferenceOptions
from schemas.target import DEFAULT_TOLERANCES

OUTPUT = "reference"
_SAMPLES_BYTES = 1 << 30
"""What the samples' inputs may take; beyond it rows are left out."""


@dataclass(frozen=True)
class _Planned:
    id: str
    source: SampleSource
    feeds: Arrays
    traced: bool = False
    must_run: bool = False


def reference(context: StepContext) -> StepOutcome:
    """Run the original at traced and untraced sizes and on real samples; write inputs and outputs of every case.

    The folder's layout is that of :class:`schemas.evidence.ReferenceCase`. Raises ModelFailed when the original does
    not run at the sizes its descriptor gives, InvalidDocument when a person's samples do not fit its inputs.
    """
    options: ReferenceOptions = context.options
    descriptor = descriptor_of(context)
    context.progress(0.05, "loading the model")
    runner = load_original(context)
    folder = context.out / OUTPUT
    folder.mkdir(parents=True, exist_ok=True)
    samples, labels = sidecar_samples(context, descriptor.inputs, options.max_samples)
    samples, labels = _cut(descriptor, samples, labels)
    cases: list[ReferenceCase] = []
    proven: list[tuple[Arrays, Arrays]] = []
    outputs: tuple[TensorSpec, ...] = ()
    deterministic, share = True, None
    planned = list(_plan(context, runner, samples))
    for number, plan in enumerate(planned):
        context.progress(0.1 + 0.7 * number / len(planned), f"running the original on {plan.id}")
        # A case goes through parity as it goes through here: the same rows together.
        try:
            given = run_rows(runner.run, plan.feeds, rows_at_once(descriptor))
        except ModelFailed:
            if plan.must_run:
                raise
            # Sizes that the original itself refuses say nothing about a candidate.
            continue
        if plan.traced:
            deterministic = _same(given, runner.run(plan.feeds))
            outputs = _output_specs(descriptor, given)
        case = ReferenceCase(
            id=plan.id,
            source=plan.source,
            axes=sizes_of(descriptor.inputs, plan.feeds),
            traced=plan.traced,
            rows=row_count(plan.feeds) if has_rows(descriptor) else 1,
        )
        write_case(folder, case, plan.feeds, given)
        cases.append(case)
        if plan.id == SAMPLES and labels is not None:
            share = accuracy(given, labels, _class_names(context))
        proven.append((plan.feeds, given))
    _check_numbers(proven)
    if labels is not None:
        np.savez(folder / f"{SAMPLES}.labels.npz", labels=labels)
    context.progress(0.85, "running rows one by one")
    report = ReferenceReport(
        cases=tuple(cases),
        outputs=outputs,
        batching=_batching(descriptor, outputs, runner, cases, proven),
        has_labels=labels is not None,
        accuracy=share,
        deterministic=deterministic,
        arithmetic=getattr(runner, "arithmetic", Precision.FP32),
    )
    write_report(folder, report)
    return StepOutcome(report=report, outputs={OUTPUT: OUTPUT})


def _check_numbers(ran: list[tuple[Arrays, Arrays]]) -> None:
    """Raise ModelFailed when every number of every answer is NaN: any candidate would agree with that."""
    answers = [array for _, given in ran for array in given.values() if array.size]
    if answers and all(array.dtype.kind == "f" and np.isnan(array).all() for array in answers):
        raise ModelFailed(
            "The model answers every input with NaN, not a number, so nothing can be proven of it.",
            hint="Its weights may hold NaN from a training that diverged; check them with torch.isnan, or take an "
            "earlier checkpoint.",
        )


def rows_at_once(descriptor: ModelDescriptor) -> int:
    """Return how many rows of a large case go through together: as many as the model is fixed at, else a few dozen.

    Without rows all of it does.
    """
    return (fixed_rows(descriptor.inputs) or ROWS_AT_ONCE) if has_rows(descriptor) else sys.maxsize


def has_rows(descriptor: ModelDescriptor) -> bool:
    """Whether the leading axis of all inputs counts rows."""
    leading = {spec.shape[0] if spec.shape else None for spec in descriptor.inputs}
    return leading in ({BATCH_AXIS}, {ROWS_AXIS}) or fixed_rows(descriptor.inputs) is not None


def _plan(context: StepContext, runner: Runner, samples: Arrays) -> Iterator[_Planned]:
    descriptor = descriptor_of(context)
    specs, base = descriptor.inputs, example_sizes(descriptor)
    rng = np.random.default_rng(context.request.seed)
    domains = _domains(context, runner, samples)

    def draw(sizes: Mapping[str, int]) -> Arrays:
        return random_feeds(specs, sizes, rng, domains)

    yield _Planned(TRACE, "random", draw(base), traced=True, must_run=True)
    leading = next((axis for axis in (BATCH_AXIS, ROWS_AXIS) if axis in base), None)
    if leading is not None:
        for size in _batch_sizes(context):
            if size != base[leading]:
                yield _Planned(f"batch-{size}", "random", draw({**base, leading: size}))
    others = [axis for axis in base if axis != leading]
    for step, change in enumerate((_shorter, _longer, _odd) if others else ()):
        sizes = {**base, **{axis: change(base[axis]) for axis in others}}
        if leading is not None:
            sizes[leading] = step + 1
        yield _Planned(f"sizes-{step + 1}", "random", draw(sizes))
    for axis in others[:8] if len(others) > 1 else ():
        # Alone, because a graph that was traced square may hold one axis in the other's place.
        label = "".join(c if c.isalnum() else "-" for c in axis.lower()).strip("-")[:40] or "axis"
        yield _Planned(f"only-{others.index(axis)}-{label}", "random", draw({**base, axis: _longer(base[axis])}))
    for number in (2, 3) if not base else ():
        yield _Planned(f"random-{number}", "random", draw(base))
    if any("float" in spec.dtype for spec in specs):
        # Where ReLUs, norms and divisions have their edges. Masks stay: no one asks about a text of no words.
        zeros = {n: np.zeros_like(a) if a.dtype.kind == "f" and "mask" not in n else a for n, a in draw(base).items()}
        yield _Planned("zeros", "random", zeros)
    if samples:
        yield _Planned(SAMPLES, "sidecar", samples, must_run=True)
    else:
        for number, feeds in enumerate(sentence_feeds(context.input("model"), specs)):
            yield _Planned(f"sentences-{number + 1}", "sentences", feeds)


def _domains(context: StepContext, runner: Runner, samples: Arrays) -> dict[str, Domain]:
    """Return what the model tells of its inputs, with as few of them held at a person's sample as it runs on."""
    descriptor, known = descriptor_of(context), dict(runner.domains)
    steps = [{**known, **held} for held in holds(descriptor.inputs, samples)]
    for domains in steps[:-1]:
        rng = np.random.default_rng(context.request.seed)
        with contextlib.suppress(ModelFailed):
            runner.run(random_feeds(descriptor.inputs, example_sizes(descriptor), rng, domains))
            return domains
    return steps[-1]


def _batch_sizes(context: StepContext) -> tuple[int, ...]:
    """Return the batch sizes to run: the step's own, and those the target is served at as far as rows go together."""
    options: ReferenceOptions = context.options
    wanted = context.request.target.batch_sizes if context.request.target is not None else ()
    return tuple(dict.fromkeys((*options.batch_sizes, *sorted(size for size in wanted if size <= ROWS_AT_ONCE))))


def _shorter(size: int) -> int:
    return max(1, size // 2 - 3) if size < 64 else size - 32


def _longer(size: int) -> int:
    return size * 2 if size < 64 else size + 32


def _odd(size: int) -> int:
    return size + 5 if size < 64 else size * 3 // 4


def _cut(descriptor: ModelDescriptor, samples: Arrays, labels: Array | None) -> tuple[Arrays, Array | None]:
    """Return as many samples as fit into memory, and a multiple of the rows that a fixed model takes."""
    if not samples:
        return {}, None
    if is_whole(descriptor.inputs, samples):
        return samples, None
    rows = row_count(samples)
    row_bytes = max(1, sum(array.nbytes for array in samples.values()) // rows)
    kept = max(1, min(rows, _SAMPLES_BYTES // row_bytes))
    fixed = fixed_rows(descriptor.inputs)
    if fixed is not None:
        kept -= kept % fixed
        if not kept:
            raise ModelFailed(
                f"The model takes exactly {fixed} rows at once, and the samples have {rows}.",
                hint=f"Give {fixed} samples or more.",
            )
    return take(samples, slice(0, kept)), labels[:kept] if labels is not None else None


def _same(first: Arrays, second: Arrays) -> bool:
    if first.keys() != second.keys():
        return False
    # Sums split over threads may differ in their last bits from run to run.
    return all(
        a.shape == second[name].shape
        and (np.allclose(a, second[name], 1e-5, 1e-6, True) if a.dtype.kind == "f" else np.array_equal(a, second[name]))
        for name, a in first.items()
    )


def _output_specs(descriptor: ModelDescriptor, given: Arrays) -> tuple[TensorSpec, ...]:
    known = {spec.name: spec for spec in descriptor.outputs}
    if known and set(known) != set(given):
        raise ModelFailed(
            f"The model gives outputs {', '.join(given)}, and its descriptor says {', '.join(known)}.",
            hint="Check 'outputs' in the sidecar.",
        )
    return tuple(
        known.get(name) or TensorSpec(name=name, dtype=dtype_name(array), shape=array.shape, known_by=KnownBy.PROBE)
        for name, array in given.items()
    )


def _batching(
    descriptor: ModelDescriptor,
    outputs: tuple[TensorSpec, ...],
    runner: Runner,
    cases: list[ReferenceCase],
    ran: list[tuple[Arrays, Arrays]],
) -> BatchProof:
    for specs in (descriptor.inputs, outputs):
        if not has_batch_axis(specs):
            return no_batch_axis(specs)
    # One case of every size, a real one where there is one. Rows of a case that was run in parts were together with
    # others than these; the small cases say enough.
    sizes: dict[int, tuple[Arrays, Arrays]] = {}
    for _, (feeds, given) in sorted(zip(cases, ran, strict=True), key=lambda pair: pair[0].source not in REAL):
        if row_count(feeds) <= ROWS_AT_ONCE:
            sizes.setdefault(row_count(feeds), (feeds, given))
    return prove(runner.run, list(sizes.values()), DEFAULT_TOLERANCES[Precision.FP32])


def _class_names(context: StepContext) -> tuple[str, ...]:
    sidecar = context.request.sidecar
    return (sidecar.labels if sidecar else ()) or descriptor_of(context).labels


def folder_of(context: StepContext) -> Path:
    """Return the reference folder that a later step was given."""
    return context.input(OUTPUT)
