"""Calibration: the range of every activation, from inputs of the reference run through the float model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from converters import onnx_file
from converters.arrays import Arrays
from converters.batching import fixed_rows, row_count, take
from converters.reference import folder_of, has_rows
from converters.reference_cases import REAL, Reference
from converters.runners import descriptor_of
from converters.silence import quiet
from schemas.errors import ConversionFailed
from schemas.step_io import StepContext
from schemas.step_options import OnnxInt8StaticOptions

if TYPE_CHECKING:
    import onnx

_ROWS_AT_ONCE = 8
_HISTOGRAM_ROWS = 2
"""Histograms are made of whole activations in memory: all of them, for so many rows."""


def calibration_rows(context: StepContext) -> tuple[list[Arrays], bool]:
    """Return inputs in small batches, at most ``max_samples`` rows, and whether they are real."""
    options: OnnxInt8StaticOptions = context.options
    if not context.has("reference"):
        raise ConversionFailed("There are no inputs to calibrate on.", hint="Run the reference step first.")
    reference = Reference.open(folder_of(context))
    cases = [case for case in reference.report.cases if case.rows > 0]
    real = [case for case in cases if case.source in REAL]
    descriptor = descriptor_of(context)
    least = _ROWS_AT_ONCE if options.method == "minmax" else _HISTOGRAM_ROWS
    at_once = fixed_rows(descriptor.inputs) or least
    rows: list[Arrays] = []
    left = options.max_samples
    for case in real or cases:
        for feeds in _parts(reference.inputs(case), at_once, has_rows(descriptor)):
            if left > 0:
                rows.append(feeds)
                left -= row_count(feeds)
    if not rows:
        raise ConversionFailed("The reference has no rows to calibrate on.")
    return rows, bool(real)


def _parts(feeds: Arrays, at_once: int, rows: bool) -> Iterator[Arrays]:
    count = row_count(feeds)
    if not rows or count <= at_once:
        yield feeds
        return
    for start in range(0, count, at_once):
        yield take(feeds, slice(start, start + at_once))


class _Reader:
    """What onnxruntime's calibrators read inputs from: one batch, then nothing."""

    def __init__(self, feeds: Arrays) -> None:
        self._feeds: Arrays | None = feeds

    def get_next(self) -> Arrays | None:
        """Return the next inputs, None when there are no more."""
        feeds, self._feeds = self._feeds, None
        return feeds


def calibrated(
    model: onnx.ModelProto, kinds: Sequence[str], rows: Sequence[Arrays], options: OnnxInt8StaticOptions, scratch: Path
) -> Any:
    """Return onnxruntime's TensorsData: tensor name to the range of its values."""
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    method = {
        "minmax": CalibrationMethod.MinMax,
        "entropy": CalibrationMethod.Entropy,
        "percentile": CalibrationMethod.Percentile,
    }[options.method]
    more: dict[str, Any] = {"symmetric": False}
    if options.method == "percentile":
        more["percentile"] = options.percentile
    big = onnx_file.size_bytes(model) > onnx_file.INLINE_BYTES
    file = onnx_file.save(model, scratch / "calibrated")
    try:
        with quiet():
            calibrator = create_calibrator(
                file,
                list(kinds),
                augmented_model_path=str(scratch / "calibrated" / "augmented.onnx"),
                calibrate_method=method,
                use_external_data_format=big,
                extra_options=more,
            )
            for feeds in rows:
                calibrator.collect_data(_Reader(feeds))
            return calibrator.compute_data()
    except onnx_file.onnxruntime_errors() as error:
        raise ConversionFailed(f"Calibration failed: {onnx_file.reason(error)}.") from error


def plain_ranges(ranges: Any) -> dict[str, tuple[float, float]]:
    """Return what the calibrator found as numbers: it gives arrays of no axis, or of one."""
    found = {name: ranges[name].range_value for name in ranges.keys()}  # noqa: SIM118  it is no mapping
    return {name: (float(np.min(least)), float(np.max(largest))) for name, (least, largest) in found.items()}
