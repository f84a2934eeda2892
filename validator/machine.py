"""What the machine can hold, as the validator is told it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MachineBounds:
    """Upper bounds of one step and of one job; ``memory_bytes`` is what a sandbox may use, not what is plugged in."""

    memory_bytes: int
    disk_bytes: int
    cpus: float
