"""The machine's ledger: never over-committed, freed whatever dies, and nobody waits for ever."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingestion.shared_artifacts import SharedArtifacts
from ingestion.store import Store
from modelium import machine_lease
from modelium.byte_locks import ByteLocks
from modelium.machine_lease import UNIT_BYTES, hold, rest, spare_place
from schemas.artifact import Artifact
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


REQUESTS = st.lists(
    st.tuples(st.integers(0, 130), st.sampled_from(["beside", "alone", "ready"])), min_size=1, max_size=10
)


@given(REQUESTS, st.integers(1, 4))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_asked_for_the_machine_is_never_over_committed_and_everybody_is_served(
    requests: list[tuple[int, str]], at_once: int
) -> None:
    budget = 100
    guard, now, peak, served = threading.Lock(), [0, 0, 0], [0, 0], []

    def run(alone: bool) -> None:
        with guard:
            now[1] += 1
            now[2] += alone
            peak[1] = max(peak[1], now[1])
            assert not now[2] or now[1] == 1, "a measurement was not alone"
        time.sleep(0.001)
        with guard:
            now[1] -= 1
            now[2] -= alone

    def ask(units: int, how: str) -> None:
        with hold(
            exclusive=how == "alone",
            at_once=at_once,
            memory_bytes=units * UNIT_BYTES,
            budget_bytes=budget * UNIT_BYTES,
        ) as lease:
            assert lease.memory_bytes == min(units, budget) * UNIT_BYTES
            with guard:
                now[0] += min(units, budget)
                peak[0] = max(peak[0], now[0])
            run(how == "alone")
            if how == "ready":
                lease.take_machine()
                run(True)
            with guard:
                now[0] -= min(units, budget)
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
from ingestion.shared_artifacts import SharedArtifacts
from ingestion.store import Store
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
from ingestion.shared_artifacts import SharedArtifacts
from ingestion.store import Store
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


BUDGET = {"budget_bytes": 100 * UNIT_BYTES}


def in_thread(what: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=what, daemon=True)
    thread.start()
    return thread


def test_two_that_hold_a_place_each_and_want_the_machine_both_get_it_in_turn() -> None:
    both, alone, most = threading.Barrier(2), [0], [0]

    def measure() -> None:
        with hold(exclusive=False, at_once=2) as lease:
            both.wait(20)
            lease.take_machine()
            alone[0] += 1
            most[0] = max(most[0], alone[0])
            time.sleep(0.05)
            alone[0] -= 1

    threads = [in_thread(measure) for _ in range(2)]
    for thread in threads:
        thread.join(timeout=20)
    assert not any(thread.is_alive() for thread in threads)
    assert most == [1]


def test_a_measurement_that_is_ready_gets_the_machine_before_the_step_that_waits_for_its_memory() -> None:
    got: list[str] = []

    def big() -> None:
        with hold(exclusive=False, memory_bytes=100 * UNIT_BYTES, **BUDGET):
            got.append("big")

    with hold(exclusive=False, memory_bytes=60 * UNIT_BYTES, **BUDGET) as lease:
        waiting = in_thread(big)
        time.sleep(0.1)  # it is first in line by now
        deadline = time.monotonic() + 20
        lease.take_machine(lambda: time.monotonic() > deadline)
        got.append("measured")
    waiting.join(timeout=20)
    assert got == ["measured", "big"]


def test_who_waits_for_the_machine_has_no_place_keeps_its_memory_and_lets_nobody_begin() -> None:
    began, done = threading.Event(), threading.Event()

    def measure() -> None:
        with hold(exclusive=False, at_once=2, memory_bytes=10 * UNIT_BYTES, **BUDGET) as lease:
            began.set()
            lease.take_machine()
            done.set()

    with hold(exclusive=False, at_once=2, memory_bytes=10 * UNIT_BYTES, **BUDGET):
        thread = in_thread(measure)
        assert began.wait(20)
        time.sleep(0.1)
        assert machine_lease.reserved_bytes() == 20 * UNIT_BYTES
        asked = time.monotonic()
        with (
            pytest.raises(Cancelled),
            hold(exclusive=False, at_once=2, should_stop=lambda: time.monotonic() > asked + 0.1),
        ):
            pass
        assert not done.is_set()
    assert done.wait(20)
    thread.join(timeout=20)


def test_steps_with_a_gpu_take_turns_and_hold_up_nobody_who_needs_none() -> None:
    with hold(exclusive=False, gpu=True):
        asked = time.monotonic()
        with (
            pytest.raises(Cancelled),
            hold(exclusive=False, gpu=True, should_stop=lambda: time.monotonic() > asked + 0.1),
        ):
            pass
        with hold(exclusive=False) as lease:
            assert lease.waited_s < 1
    with hold(exclusive=False, gpu=True) as lease:
        assert lease.waited_s < 1


def test_a_measurement_on_the_gpu_gets_the_machine_while_another_step_waits_for_the_gpu() -> None:
    got: list[str] = []

    def build() -> None:
        with hold(exclusive=False, gpu=True):
            got.append("built")

    with hold(exclusive=False, gpu=True) as lease:
        waiting = in_thread(build)
        time.sleep(0.1)  # it is first in line by now
        deadline = time.monotonic() + 20
        lease.take_machine(lambda: time.monotonic() > deadline)
        got.append("measured")
    waiting.join(timeout=20)
    assert got == ["measured", "built"]


def test_work_in_the_background_takes_no_step_its_place_and_lets_nobody_have_the_machine_alone() -> None:
    with hold(exclusive=False, at_once=2) as lease:
        with spare_place() as one, spare_place() as another, hold(exclusive=False, at_once=2):
            assert one and another
        with spare_place() as free:
            assert free
            began = time.monotonic()
            with pytest.raises(Cancelled):
                lease.take_machine(lambda: time.monotonic() > began + 0.1)
        lease.take_machine()
        with spare_place() as free:
            assert not free
    with spare_place() as free:
        assert free


def test_no_work_in_the_background_begins_while_somebody_waits_for_the_machine() -> None:
    with hold(exclusive=False, at_once=2) as lease:
        with hold(exclusive=False, at_once=2):
            thread = in_thread(lease.take_machine)
            deadline = time.monotonic() + 20
            free = True
            while free:
                assert time.monotonic() < deadline
                with spare_place() as free:
                    pass
        thread.join(timeout=20)
        assert not thread.is_alive()


def test_the_machine_is_at_rest_only_while_nobody_else_has_or_wants_a_place_of_it() -> None:
    resting = rest()
    is_free = resting.__enter__()
    assert is_free()
    with rest() as another:
        assert not another() and is_free()
    with hold(exclusive=False, at_once=1) as lease:
        assert not is_free()
        thread = in_thread(lease.take_machine)
        time.sleep(0.2)  # it has given its place back by now, and waits for this one
        assert not is_free() and thread.is_alive()
        with rest() as another:
            assert not another()
        resting.__exit__(None, None, None)
        thread.join(timeout=20)
        assert not thread.is_alive()
    with spare_place(), rest() as is_free:
        assert not is_free()


def test_who_stands_in_line_for_the_whole_machine_ends_its_rest() -> None:
    def take_all() -> None:
        with hold(exclusive=True):
            pass

    with rest() as is_free:
        thread = in_thread(take_all)
        wait_until(lambda: not is_free())
        assert thread.is_alive()
    thread.join(timeout=20)
    assert not thread.is_alive()
    with rest() as is_free:
        assert is_free()


def test_who_is_cancelled_while_it_waits_for_the_machine_holds_nobody_up() -> None:
    with hold(exclusive=False, at_once=2), hold(exclusive=False, at_once=2) as lease:
        with pytest.raises(Cancelled):
            lease.take_machine(lambda: True)
        with hold(exclusive=False, at_once=2):
            pass


def test_a_process_killed_while_it_waits_for_the_machine_holds_nobody_up(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from ingestion.shared_artifacts import SharedArtifacts
from ingestion.store import Store
from modelium import machine_lease
machine_lease.runtime_root = lambda: Path({str(tmp_path)!r})
with machine_lease.hold(exclusive=False, memory_bytes=90 << 20, budget_bytes=100 << 20) as lease:
    Path({str(tmp_path / "asking")!r}).touch()
    lease.take_machine()
"""
    with hold(exclusive=False):
        waiter = subprocess.Popen([sys.executable, "-P", "-c", code])
        wait_until((tmp_path / "asking").exists)
        time.sleep(0.2)
        waiter.kill()
        waiter.wait()
        assert machine_lease.reserved_bytes() == 0
        with hold(exclusive=False):
            pass


def test_measurements_of_several_processes_all_get_the_machine(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from ingestion.shared_artifacts import SharedArtifacts
from ingestion.store import Store
from modelium import machine_lease
machine_lease.runtime_root = lambda: Path({str(tmp_path)!r})
for _ in range(5):
    with machine_lease.hold(exclusive=False, at_once=2, memory_bytes=40 << 20, budget_bytes=100 << 20) as lease:
        lease.take_machine()
        Path({str(tmp_path / "alone")!r}).touch(exist_ok=False)
        Path({str(tmp_path / "alone")!r}).unlink()
"""
    processes = [subprocess.Popen([sys.executable, "-P", "-c", code]) for _ in range(3)]
    try:
        assert [process.wait(timeout=60) for process in processes] == [0, 0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_a_step_that_waits_for_a_bucket_has_given_all_of_its_lease_back(tmp_path: Path) -> None:
    whole = {"exclusive": False, "at_once": 1, "memory_bytes": 1 << 30, "budget_bytes": 1 << 30, "gpu": True}
    give_up = time.monotonic() + 20

    class Slow(SharedArtifacts):
        others = 0

        def share(self, artifact: Artifact, blobs: Mapping[str, Path]) -> Artifact:
            with hold(**whole, should_stop=lambda: time.monotonic() > give_up):  # type: ignore[arg-type]
                self.others += 1
            return artifact

    shared = Slow(None)  # type: ignore[arg-type]
    (tmp_path / "made").write_text("made")
    with hold(**whole) as lease:  # type: ignore[arg-type]
        Store(tmp_path / "store", shared=shared).put(tmp_path / "made", before_upload=lease.give_back)
    assert shared.others == 1
