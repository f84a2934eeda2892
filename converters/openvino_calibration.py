"""Calibration: the reference's inputs as single feeds that a quantiser collects the ranges of activations on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from converters.arrays import Arrays
from converters.batching import row_count, take
from converters.reference_cases import REAL, Reference
from schemas.descriptor import BATCH_AXIS, ModelDescriptor
from schemas.errors import ConversionFailed
from schemas.step_io import StepContext


@dataclass(frozen=True)
class Calibration:
    """Feeds by name, one row each where the model takes rows; ``real`` when they are samples or sentences."""

    feeds: tuple[Arrays, ...]
    real: bool

    def note(self) -> str:
        """Return what a person should know of them."""
        if self.real:
            return f"Activations were calibrated on {len(self.feeds)} real inputs."
        return (
            f"Activations were calibrated on {len(self.feeds)} random inputs, as there are no samples: real ones may "
            "lie elsewhere."
        )


def calibration(context: StepContext, limit: int) -> Calibration:
    """Return up to ``limit`` feeds from input ``reference``: real ones where there are any, else random ones.

    They are spread over all cases, so that every size is among them. Raises ConversionFailed without a reference.
    """
    descriptor = context.request.descriptor
    if descriptor is None or not context.has("reference"):
        raise ConversionFailed(
            "Quantising activations needs the reference's inputs, and there are none.",
            hint="Run the reference step first.",
        )
    reference = Reference.open(context.input("reference"))
    cases = list(reference.report.cases)
    real = [case for case in cases if case.source in REAL]
    # Zeros show a quantiser a range that no activation has.
    chosen = real or [case for case in cases if case.id != "zeros"] or cases
    rows: list[list[Arrays]] = []
    for case in chosen:
        feeds = {name: array for name, array in reference.inputs(case).items() if name in _names(descriptor)}
        rows.append(_split(descriptor, feeds, limit))
    spread = [row for column in range(limit) for part in rows for row in part[column : column + 1]]
    return Calibration(tuple(spread[:limit]), bool(real))


def _names(descriptor: ModelDescriptor) -> frozenset[str]:
    return frozenset(spec.name for spec in descriptor.inputs)


def _split(descriptor: ModelDescriptor, feeds: Arrays, limit: int) -> list[Arrays]:
    leading = {spec.shape[0] if spec.shape else None for spec in descriptor.inputs}
    if leading != {BATCH_AXIS}:
        return [feeds]
    count = row_count(feeds)
    # Samples may be sorted by class: take rows from all of them.
    at = np.unique(np.linspace(0, count - 1, min(count, limit)).astype(int))
    return [take(feeds, np.array([row])) for row in at]
