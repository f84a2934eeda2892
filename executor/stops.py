"""Why a sandbox is brought to its end: one sentence each, the same whichever backend says it."""

from __future__ import annotations

from schemas.errors import Cancelled, LimitExceeded, ModeliumError
from schemas.step_run import Limits

TICK_S = 0.05
"""How often a running sandbox is looked at."""
ASK_EVERY_S = 0.25
"""How often its observer is asked whether it should stop."""


def out_of_time(limits: Limits, took_s: float) -> ModeliumError:
    """Return the error of a step that ran longer than it may."""
    return LimitExceeded(
        f"The step took longer than {limits.timeout_s:g} s.",
        hint="Raise step_timeout_s (MODELIUM_STEP_TIMEOUT_S), or use a smaller model.",
        limit=limits.timeout_s,
        actual=round(took_s, 3),
    )


def out_of_memory(limits: Limits, seen_bytes: int) -> ModeliumError:
    """Return the error of a step of which the kernel killed a process, or which was seen to hold too much."""
    return LimitExceeded(
        f"The step needed more than the {limits.memory_bytes >> 20} MiB of memory it was given.",
        hint="Raise step_memory_bytes (MODELIUM_STEP_MEMORY_BYTES), or use a smaller model.",
        limit=limits.memory_bytes,
        actual=max(seen_bytes, limits.memory_bytes),
    )


def too_many_processes(limits: Limits, seen: int) -> ModeliumError:
    """Return the error of a step that was seen to have more processes and threads than it may."""
    return LimitExceeded(
        f"The step had more than the {limits.processes} processes and threads it may have.",
        hint="Raise step_processes (MODELIUM_STEP_PROCESSES), or have the model's code start fewer.",
        limit=limits.processes,
        actual=seen,
    )


def cancelled() -> ModeliumError:
    """Return the error of a step whose observer said stop."""
    return Cancelled("The job was cancelled while this step ran.")
