"""What a step will need of memory, estimated before it runs from what its kind does and how large its models are.

The numbers are measured peaks of real steps with a third added (``bench/big_model.py`` prints them for a model of any
size). An estimate decides who runs beside whom; the limit that ends a step is a setting.
"""

from __future__ import annotations

from collections.abc import Iterable

from schemas.catalog import entry
from schemas.descriptor import ModelDescriptor

MIB = 1 << 20

FLOOR_BYTES = {
    "onnx": 192 * MIB,
    "sklearn": 192 * MIB,
    "boosting": 384 * MIB,
    "openvino": 384 * MIB,
    "torch": 512 * MIB,
    "tensorflow": 1024 * MIB,
}
"""Toolchain to what its libraries take before a model is there."""
OTHER_FLOOR_BYTES = 1024 * MIB
READING_BYTES = 96 * MIB
"""What reads headers as bytes takes, however large the file."""
EXPORT_BYTES = 256 * MIB
"""What exporting from torch or TensorFlow takes beside the model."""

SMALL_FACTOR = 4.5
STREAMED_FACTOR, STREAMED_BYTES = 2.5, 512 * MIB
"""Converters keep no more than 2.5 times a large model; up to 4.5 times a small one, which is less in all."""
RUNNING_FACTOR = 2.0

CALIBRATION_BYTES = 1024 * MIB
"""Activations of the samples that static quantisation keeps: of images they are many times the weights."""
CALIBRATING = frozenset({"onnx_int8_static", "openvino_int8"})


def estimate(
    kind: str,
    toolchain: str,
    model_bytes: Iterable[int],
    descriptor: ModelDescriptor | None = None,
    beside: Iterable[str] = (),
) -> int:
    """Return the bytes a step is expected to need at its peak.

    Args:
        model_bytes: Sizes of the models among its inputs: one, or all contenders of a measurement.
        beside: Toolchains whose interpreters run beside its own.
    """
    if kind in ("analyze", "unpack"):
        return READING_BYTES
    size = sum(model_bytes)
    floor = sum(FLOOR_BYTES.get(name, OTHER_FLOOR_BYTES) for name in {toolchain, *beside})
    if entry(kind).role == "conversion":
        more = EXPORT_BYTES if toolchain in ("torch", "tensorflow") else 0
        more += CALIBRATION_BYTES if kind in CALIBRATING else 0
        return floor + more + int(min(SMALL_FACTOR * size, STREAMED_FACTOR * size + STREAMED_BYTES))
    ran = (descriptor.memory_bytes or 0) if descriptor is not None and kind == "reference" else 0
    return max(floor + int(RUNNING_FACTOR * size), ran)
