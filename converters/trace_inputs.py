"""TraceCase: inputs that an export is traced with, and others that show whether it froze something."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from converters import arrays, sampling
from converters.domain import Domain
from schemas.descriptor import BATCH_AXIS
from schemas.evidence import ReferenceReport
from schemas.step_io import StepContext


@dataclass(frozen=True)
class TraceCase:
    """Inputs by name, and the original's outputs where they are known already."""

    feeds: arrays.Arrays
    expected: arrays.Arrays | None = None


def trace_cases(context: StepContext, domains: Mapping[str, Domain] | None = None) -> tuple[TraceCase, ...]:
    """Return the case to trace with first, then one of other sizes where the descriptor has dynamic axes.

    They come from input ``reference`` where it is given, so that the sizes are those the original is known to take.
    Otherwise they are drawn, from ``domains`` where those are known.
    The batch that is traced is never 1: exporters take an axis of size 1 for fixed, and freeze it without a word.
    """
    descriptor = context.request.descriptor
    if descriptor is None or not descriptor.inputs:
        raise ValueError("an export needs a descriptor with inputs")
    found = reference_cases(context)
    if found:
        return found
    rng = np.random.default_rng(context.request.seed)
    sizes = {axis: max(size, 2) for axis, size in sampling.example_sizes(descriptor).items()}
    traced = TraceCase(sampling.random_feeds(descriptor.inputs, sizes, rng, domains))
    if not sizes:
        return (traced,)
    # Batches may be any size; other axes may have bounds that only the reference knows, so they shrink.
    others = {axis: size + 1 if axis == BATCH_AXIS else max(size // 2 + 1, 1) for axis, size in sizes.items()}
    return traced, TraceCase(sampling.random_feeds(descriptor.inputs, others, rng, domains))


def reference_cases(context: StepContext) -> tuple[TraceCase, ...]:
    """Return the traced case of input ``reference`` and the one that differs most from it; () without a reference."""
    descriptor = context.request.descriptor
    if descriptor is None or not context.has("reference"):
        return ()
    folder = context.input("reference")
    file = folder / "cases.json"
    if not file.is_file():
        return ()
    report = ReferenceReport.model_validate(json.loads(file.read_text(encoding="utf-8")))
    traced = next((case for case in report.cases if case.traced), None)
    if traced is None:
        return ()
    # The one that differs from the traced sizes in the most axes shows the most; of equal ones the smallest.
    others = sorted(
        (case for case in report.cases if case.axes != traced.axes and case.rows > 0),
        key=lambda case: (
            -sum(size != traced.axes.get(axis) for axis, size in case.axes.items()),
            sum(case.axes.values()),
        ),
    )
    needed = {spec.name for spec in descriptor.inputs}
    cases = []
    for case in (traced, *others[:1]):
        feeds = arrays.load(folder / f"{case.id}.inputs.npz")
        if not needed <= set(feeds):
            return ()
        outputs = folder / f"{case.id}.outputs.npz"
        expected = arrays.load(outputs) if outputs.is_file() else None
        cases.append(TraceCase({name: feeds[name] for name in feeds if name in needed}, expected))
    return tuple(cases)
