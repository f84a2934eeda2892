"""What the pool decides by itself; that its containers are real ones is seen in test_docker_warm."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import pytest

from executor.docker_pool import ContainerPool, Kind
from executor.sandbox import Command
from executor.warm_bounds import WarmBounds
from schemas.step_run import Limits

pytestmark = pytest.mark.timeout(30)


class Idle:
    """A container whose imports are done."""

    idle, has_ended = True, False

    def listen(self, timeout_s: float) -> None:
        pass

    def memory_bytes(self) -> int:
        return 1

    def close(self) -> None:
        pass


def test_one_that_is_waited_for_is_made_however_long_the_machine_was_taken(tmp_path):
    asked = []

    def place():
        asked.append(1)
        return contextlib.nullcontext(len(asked) > 3)  # until then somebody has the machine alone

    made = []
    bounds = WarmBounds(idle_s=0.05, place=place)
    pool = ContainerPool(bounds, lambda kind: made.append(kind) or Idle(), lambda: None)
    command = Command((sys.executable,), tmp_path, Path(sys.executable), Limits(), warm="bare")
    kind = Kind("{}", tmp_path, command)
    try:
        pool.await_idle(kind)
    finally:
        pool.close()
    assert made
