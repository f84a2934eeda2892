"""The machine is a measuring step's alone before its rounds begin, and nobody's when it ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from converters.machine_turn import await_machine
from modelium import machine_lease
from modelium.handover import Handover
from modelium.machine_lease import hold
from schemas.errors import Cancelled
from schemas.step_io import LEASE_FILE, LEASE_INPUT, READY, StepContext, StepRequest


@pytest.fixture(autouse=True)
def _own_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_lease, "runtime_root", lambda: tmp_path)


def step_of(handover: Handover, hear: Callable[[str], None]) -> StepContext:
    request = StepRequest(kind="measure", inputs={LEASE_INPUT: str(handover.folder)})
    return StepContext(request, handover.folder, None, lambda fraction, message: hear(message))


def is_free() -> bool:
    """Whether another step gets a place now."""
    asked = time.monotonic()
    try:
        with hold(exclusive=False, should_stop=lambda: time.monotonic() > asked + 0.1):
            return True
    except Cancelled:
        return False


def test_a_step_begins_when_those_beside_it_have_ended_and_has_the_machine_until_it_ends(tmp_path: Path) -> None:
    begun = threading.Event()
    with hold(exclusive=False) as lease, Handover(lease, tmp_path / "workspaces", lambda: False) as handover:
        step = step_of(handover, handover.hear)
        thread = threading.Thread(target=lambda: (await_machine(step, 0.2), begun.set()), daemon=True)
        with hold(exclusive=False):
            thread.start()
            assert not begun.wait(0.3)
        assert begun.wait(20)
        thread.join(20)
        assert not is_free()
    assert is_free()
    assert list((tmp_path / "workspaces").iterdir()) == []


def test_a_ready_line_that_was_lost_is_said_again(tmp_path: Path) -> None:
    said: list[str] = []

    def hear(message: str) -> None:
        said.append(message)
        if len(said) > 2:
            handover.hear(message)

    with hold(exclusive=False) as lease, Handover(lease, tmp_path / "workspaces", lambda: False) as handover:
        await_machine(step_of(handover, hear), 0.2)
    assert set(said) == {READY}


def test_a_step_that_never_says_that_it_is_ready_leaves_the_machine_to_others(tmp_path: Path) -> None:
    with hold(exclusive=False) as lease, Handover(lease, tmp_path / "workspaces", lambda: False) as handover:
        handover.hear("round 1 of at most 15")
        assert is_free()
        assert not (handover.folder / LEASE_FILE).read_bytes()


def test_a_step_that_ends_or_is_cancelled_while_it_waits_leaves_the_line(tmp_path: Path) -> None:
    stopping = threading.Event()
    with hold(exclusive=False):
        with hold(exclusive=False) as lease, Handover(lease, tmp_path / "workspaces", stopping.is_set) as handover:
            handover.hear(READY)
        with hold(exclusive=False) as lease, Handover(lease, tmp_path / "workspaces", stopping.is_set) as handover:
            handover.hear(READY)
            stopping.set()
            deadline = time.monotonic() + 20
            while not handover.has_failed():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert not (handover.folder / LEASE_FILE).read_bytes()
        assert is_free()


def test_a_file_that_cannot_be_written_stops_the_step_with_that_reason(tmp_path: Path) -> None:
    with (
        pytest.raises(IsADirectoryError),
        hold(exclusive=False) as lease,
        Handover(lease, tmp_path / "workspaces", lambda: False) as handover,
    ):
        (handover.folder / LEASE_FILE).unlink()
        (handover.folder / LEASE_FILE).mkdir()
        handover.hear(READY)
        deadline = time.monotonic() + 20
        while not handover.has_failed():
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_by_hand_nothing_waits(tmp_path: Path) -> None:
    await_machine(StepContext(StepRequest(kind="measure"), tmp_path, None), 0.2)
