"""Objective: what the best candidate is best at."""

from __future__ import annotations

from enum import StrEnum


class Objective(StrEnum):
    """What the best candidate is best at."""

    LATENCY = "latency"
    THROUGHPUT = "throughput"
    SIZE = "size"
