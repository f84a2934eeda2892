"""The turn of a step on the machine: it says that it is ready and waits until it has the machine alone."""

from __future__ import annotations

import time

from schemas.step_io import LEASE_FILE, LEASE_INPUT, READY, StepContext

_LOOK_EVERY_S = 0.004
_SAY_AGAIN_S, _LONGEST_S = 0.02, 5.0
"""Progress may be lost: right after another line, or in a full pipe."""


def await_machine(context: StepContext, fraction: float) -> None:
    """Return once whoever runs the step has the machine for it alone; at once where the step has no input ``lease``."""
    if not context.has(LEASE_INPUT):
        return
    path = context.input(LEASE_INPUT) / LEASE_FILE
    say_at, pause_s = 0.0, _SAY_AGAIN_S
    while not path.read_bytes():  # opened anew each time: so does a network file system look for what is new
        if time.monotonic() >= say_at:
            context.progress(fraction, READY)
            say_at, pause_s = time.monotonic() + pause_s, min(2 * pause_s, _LONGEST_S)
        time.sleep(_LOOK_EVERY_S)
