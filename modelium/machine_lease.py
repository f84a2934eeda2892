"""The machine's lease: steps share it, measuring has it alone.

Two files locked with flock, so that a killed holder frees them at once and two homes on one machine respect each
other. ``gate`` is held only while waiting: a waiting measurement closes it, so new steps can't starve it.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from modelium.home import runtime_root
from schemas.errors import Cancelled

POLL_S = 0.05


@contextmanager
def hold(*, exclusive: bool, should_stop: Callable[[], bool] = lambda: False) -> Iterator[float]:
    """Hold the machine; yields the seconds that were waited. Raises Cancelled when ``should_stop`` says so."""
    began = time.monotonic()
    root = runtime_root()
    with (
        locked(root / "machine.gate", should_stop=should_stop) as gate,
        locked(root / "machine.lock", exclusive=exclusive, should_stop=should_stop),
    ):
        fcntl.flock(gate, fcntl.LOCK_UN)
        yield time.monotonic() - began


@contextmanager
def locked(path: Path, *, exclusive: bool = True, should_stop: Callable[[], bool] = lambda: False) -> Iterator[int]:
    """Hold an flock on ``path``; the lock ends with the block or the process. Raises Cancelled."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    mode = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    try:
        while True:
            try:
                fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if should_stop():
                    raise Cancelled("Stopped while waiting for the machine.") from None
                time.sleep(POLL_S)
        yield descriptor
    finally:
        os.close(descriptor)
