"""Why a sandbox is brought to its end: one sentence each, the same whichever backend says it."""

from __future__ import annotations

import time
from collections.abc import Callable

from schemas.errors import Cancelled, LimitExceeded, ModeliumError
from schemas.step_run import Limits

TICK_S = 0.05
"""How often a running sandbox is looked at."""
ASK_EVERY_S = 0.25
"""How often its observer is asked whether it should stop."""


class Stops:
    """When one run has to end: whoever waits for its output asks each time around.

    ``look`` tells what is exceeded, if anything is.
    """

    def __init__(
        self,
        limits: Limits,
        began: float,
        should_stop: Callable[[], bool] | None,
        look: Callable[[], ModeliumError | None],
    ) -> None:
        self._limits, self._began, self._should_stop, self._look = limits, began, should_stop, look
        self._deadline, self._ask_at, self._look_at = began + limits.timeout_s, began, 0.0

    @property
    def patience_s(self) -> float:
        """How long to wait for output before asking again."""
        return max(0.0, min(TICK_S, self._deadline - time.monotonic()))

    def reached(self) -> ModeliumError | None:
        """Return why it has to end now, or None."""
        now = time.monotonic()
        if now >= self._deadline:
            return out_of_time(self._limits, now - self._began)
        if now >= self._ask_at:
            self._ask_at = now + ASK_EVERY_S
            if self._should_stop is not None and self._should_stop():
                return cancelled()
        if now >= self._look_at:
            self._look_at = now + TICK_S
            return self._look()
        return None


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
