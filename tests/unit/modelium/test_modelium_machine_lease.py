"""The machine's ledger: never over-committed, freed whatever dies, and nobody waits for ever."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelium import machine_lease
from modelium.byte_locks import ByteLocks
from modelium.machine_lease import UNIT_BYTES, hold
from schemas.errors import Cancelled


@pytest.fixture(autouse=True)
def _own_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger of the test's own: other steps run on this machine meanwhile."""
    monkeypatch.setattr(machine_lease, "runtime_root", lambda: tmp_path)


def wait_until(condition: object, timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.002)


SPANS = st.tuples(st.integers(0, 60), st.integers(0, 12)).map(lambda pair: range(pair[0], pair[0] + pair[1]))


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), SPANS), max_size=40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_kernel_keeps_the_ledger_that_a_set_of_bytes_would(
    tmp_path: Path, calls: list[tuple[int, bool, range]]
) -> None:
    holders = [ByteLocks(tmp_path / "ledger") for _ in range(4)]
    owned: list[set[int]] = [set() for _ in holders]
    try:
        for who, taking, span in calls:
            others = set().union(*(owned[i] for i in range(4) if i != who))
            if taking:
                assert holders[who].take(span) is not bool(others & set(span))
                owned[who] |= set(span) if not others & set(span) else set()
            else:
                holders[who].give(span)
                owned[who] -= set(span)
            free = holders[who].free(range(0, 80))
            others = set().union(*(owned[i] for i in range(4) if i != who))
            assert {byte for part in free for byte in part} == set(range(80)) - others
            assert all(left.stop <= right.start for left, right in itertools.pairwise(free))
    finally:
        for holder in holders:
            holder.close()


REQUESTS = st.lists(st.tuples(st.integers(0, 130), st.booleans()), min_size=1, max_size=10)


@given(REQUESTS, st.integers(1, 4))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_asked_for_the_machine_is_never_over_committed_and_everybody_is_served(
    requests: list[tuple[int, bool]], at_once: int
) -> None:
    budget = 100
    guard, now, peak, served = threading.Lock(), [0, 0, 0], [0, 0], []

    def ask(units: int, exclusive: bool) -> None:
        with hold(
            exclusive=exclusive, at_once=at_once, memory_bytes=units * UNIT_BYTES, budget_bytes=budget * UNIT_BYTES
        ) as lease:
            assert lease.memory_bytes == min(units, budget) * UNIT_BYTES
            with guard:
                now[0] += min(units, budget)
                now[1] += 1
                now[2] += exclusive
                peak[:] = max(peak[0], now[0]), max(peak[1], now[1])
                assert not now[2] or now[1] == 1, "a measurement was not alone"
            time.sleep(0.001)
            with guard:
                now[0] -= min(units, budget)
                now[1] -= 1
                now[2] -= exclusive
        served.append(units)

    threads = [threading.Thread(target=ask, args=request, daemon=True) for request in requests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert sorted(served) == sorted(units for units, _ in requests)
    assert peak[0] <= budget and peak[1] <= at_once
    assert machine_lease.reserved_bytes() == 0


def test_many_small_steps_never_overtake_a_big_one_for_ever() -> None:
    stop, done = threading.Event(), threading.Event()
    after: list[int] = []

    def small() -> None:
        while not stop.is_set():
            with hold(exclusive=False, memory_bytes=40 * UNIT_BYTES, budget_bytes=100 * UNIT_BYTES):
                time.sleep(0.003)
            after.append(1)

    def big() -> None:
        with hold(exclusive=False, memory_bytes=100 * UNIT_BYTES, budget_bytes=100 * UNIT_BYTES):
            done.set()

    crowd = [threading.Thread(target=small, daemon=True) for _ in range(4)]
    for thread in crowd:
        thread.start()
    time.sleep(0.1)
    after.clear()
    threading.Thread(target=big, daemon=True).start()
    assert done.wait(20)
    # Those that held, those that stood in line before it, and one each that came while it was being served.
    assert len(after) <= 3 * len(crowd)
    stop.set()
    for thread in crowd:
        thread.join(timeout=20)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    code = f"""
import time
from pathlib import Path
from modelium import machine_lease
machine_lease.runtime_root = lambda: Path({str(tmp_path)!r})
with machine_lease.hold(exclusive=False, memory_bytes=90 << 20, budget_bytes=100 << 20):
    Path({str(tmp_path / "held")!r}).touch()
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-P", "-c", code])
    try:
        wait_until((tmp_path / "held").exists)
        yield process
    finally:
        process.kill()
        process.wait()


def test_what_a_killed_process_had_is_free_at_once(holder: subprocess.Popen[bytes]) -> None:
    assert machine_lease.reserved_bytes() == 90 << 20
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert machine_lease.reserved_bytes() == 0
    with hold(exclusive=True, memory_bytes=100 << 20, budget_bytes=100 << 20) as lease:
        assert lease.memory_bytes == 100 << 20


def test_a_killed_waiter_holds_nobody_up(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from modelium import machine_lease
machine_lease.runtime_root = lambda: Path({str(tmp_path)!r})
Path({str(tmp_path / "asking")!r}).touch()
with machine_lease.hold(exclusive=True):
    pass
"""
    with hold(exclusive=False):
        waiter = subprocess.Popen([sys.executable, "-P", "-c", code])
        wait_until((tmp_path / "asking").exists)
        time.sleep(0.2)
        with pytest.raises(Cancelled):  # the measurement stands before it
            ask_at = time.monotonic()
            with hold(exclusive=False, should_stop=lambda: time.monotonic() > ask_at + 0.3):
                pass
        waiter.kill()
        waiter.wait()
        with hold(exclusive=False):
            pass


def test_a_step_that_wants_more_than_there_is_gets_all_of_it_and_runs_alone() -> None:
    with hold(exclusive=False, memory_bytes=10**15, budget_bytes=100 * UNIT_BYTES) as lease:
        assert lease.memory_bytes == 100 * UNIT_BYTES
        asked = time.monotonic()
        with (
            pytest.raises(Cancelled),
            hold(
                exclusive=False,
                memory_bytes=1,
                budget_bytes=100 * UNIT_BYTES,
                should_stop=lambda: time.monotonic() > asked + 0.1,
            ),
        ):
            pass


def test_a_cancelled_waiter_leaves_the_line() -> None:
    with hold(exclusive=True), pytest.raises(Cancelled), hold(exclusive=False, should_stop=lambda: True):
        pass
    with hold(exclusive=True) as lease:
        assert lease.waited_s < 1
