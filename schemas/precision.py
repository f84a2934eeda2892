"""Precision: the numbers that a candidate computes with."""

from __future__ import annotations

from enum import StrEnum


class Precision(StrEnum):
    """Numeric precision of a candidate's weights and arithmetic."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    FP8 = "fp8"
    INT8 = "int8"
    INT4 = "int4"
