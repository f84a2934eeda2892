"""Children that wait for a step: taken by the next one, replaced beside it, gone with their parent."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from executor import find_sandbox
from executor.sandbox import NO_OBSERVERS, Command, Ending, Observers
from executor.stops import cancelled
from executor.warm_bounds import WarmBounds
from executor.warm_failed import WarmFailed
from executor.warm_parent import WarmParent
from executor.warm_seat import WarmSeat
from schemas.errors import Cancelled
from schemas.step_run import Limits

_serial = itertools.count()

pytestmark = [pytest.mark.sandbox, pytest.mark.timeout(120)]


class Steps:
    """Steps of one warm parent of their own."""

    def __init__(self, folder: Path, **bounds: object) -> None:
        self._folder, self._runs = folder, 0
        # One sandbox is kept for all that ask for the same: these bounds are nobody else's.
        self.sandbox = find_sandbox(backend="bubblewrap", warm=WarmBounds(idle_s=500 + next(_serial), **bounds))

    def __call__(self, code: str, observers: Observers = NO_OBSERVERS, **more: object) -> Ending:
        self._runs += 1
        workspace = self._folder / str(self._runs)
        workspace.mkdir()
        argv = (sys.executable, "-c", textwrap.dedent(code))
        command = Command(argv, workspace, Path(sys.executable), Limits(), warm="bare", **more)
        return self.sandbox.execute(command, observers)

    @property
    def parent(self) -> WarmParent:
        [parent] = self.sandbox._warm.parents._ready()
        return parent

    def waiting(self) -> WarmSeat:
        """The child that waits, when there is one."""
        wait_until(lambda: self.parent._waiting is not None)
        seat = self.parent._waiting
        assert seat is not None
        return seat

    def close(self) -> None:
        self.sandbox._warm.parents.close()


def wait_until(condition, timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


@pytest.fixture
def steps(tmp_path: Path) -> Iterator[Steps]:
    made = Steps(tmp_path)
    made("pass")
    yield made
    made.close()


def test_the_next_step_runs_in_the_child_that_waits_and_another_one_waits_then(steps, monkeypatch):
    first = steps.waiting()
    group = first.cgroup.name
    monkeypatch.setattr(steps.parent, "_forked", lambda should_stop: pytest.fail("it was forked for the step"))
    monkeypatch.setattr(steps.parent, "keep_seat", lambda: None)
    ending = steps("import os; print(os.getpid(), os.listdir('/step'))")
    assert ending.warm is not None and ending.log == "2 ['out']\n"
    assert not first.waits if first._is_open else not psutil.pid_exists(first.pid)
    assert not any((place.parent / group).exists() for place in first.cgroup.hierarchies.values())
    monkeypatch.undo()
    steps("pass")
    second = steps.waiting()
    assert second.pid != first.pid and second.waits


def test_steps_at_once_have_a_child_each(steps):
    steps.waiting()
    other: list[Ending] = []

    def start_another(text: str) -> None:
        if not other:
            other.append(steps("import os; print('other', os.listdir('/dev/shm'))"))

    body = "import time; open('/dev/shm/mine', 'w'); print('up', flush=True); time.sleep(0.5)"
    ending = steps(body, Observers(on_log=start_another))
    assert ending.warm is not None and [found.log for found in other] == ["other []\n"]
    assert other[0].warm is not None


def test_a_child_that_died_while_it_waited_is_not_taken(steps):
    seat = steps.waiting()
    os.kill(seat.pid, 9)
    wait_until(lambda: not seat.waits)
    ending = steps("print('here')")
    assert ending.warm is not None and ending.log == "here\n"
    assert steps.waiting().pid != seat.pid


def test_its_group_has_the_bounds_of_the_step_that_takes_it(steps):
    if "memory" not in steps.waiting().cgroup.hierarchies:
        pytest.skip("This user may make no control group.")
    folder = steps.waiting().cgroup._folders()
    bounds = {file.name: file.read_text() for place in folder for file in place.glob("pids.max")}
    assert bounds == {"pids.max": "max\n"}
    seen: list[str] = []

    def look(text: str) -> None:
        seen.extend(file.read_text().strip() for place in folder for file in place.glob("pids.max"))

    steps("import time; print('up', flush=True); time.sleep(0.2)", Observers(on_log=look))
    assert [int(bound) for bound in seen[:1]] == [Limits().processes + 3]


def test_beside_what_is_timed_nothing_is_forked_and_no_parent_runs(tmp_path):
    steps = Steps(tmp_path, rest=lambda: contextlib.nullcontext(lambda: False))  # others use the machine
    steps("import time; time.sleep(0.5)")
    steps.waiting()
    seen: list[object] = []

    def look(text: str) -> None:
        time.sleep(0.5)
        seen.extend((steps.parent._waiting, psutil.Process(steps.parent._pid).status()))

    ending = steps("print('up', flush=True)", Observers(on_log=look), timed=True)
    assert ending.warm is not None
    assert seen[:2] == [None, psutil.STATUS_STOPPED]  # heard once a line, or more often
    steps("import time; time.sleep(0.5)")
    assert steps.waiting().waits
    steps.close()


def test_a_step_that_is_cancelled_before_its_child_answers_is_cancelled_and_not_started_anew(steps, monkeypatch):
    steps.waiting().close()
    steps.parent._waiting = None
    monkeypatch.setattr(steps.parent, "keep_seat", lambda: None)
    monkeypatch.setattr(WarmSeat, "_answer", lambda self, should_stop: (_ for _ in ()).throw(cancelled()))
    ending = steps("print('started')")
    assert isinstance(ending.error, Cancelled) and ending.log == ""


def test_a_parent_that_cannot_keep_a_child_forks_for_each_step(steps, monkeypatch):
    steps.waiting().close()
    steps.parent._waiting = None

    def fail(should_stop: object) -> WarmSeat:
        raise WarmFailed("no room")

    with monkeypatch.context() as patched:
        patched.setattr(steps.parent, "_forked", fail)
        steps.parent.keep_seat()
    assert not steps.parent.lacks_seat
    ending = steps("print('here')")
    assert ending.warm is not None and steps.parent._waiting is None


def test_what_a_parent_holds_counts_the_child_that_waits(steps):
    seat = steps.waiting()
    beside = seat.cgroup.memory_bytes()
    if beside is None:
        pytest.skip("This user may make no control group.")
    with_it = steps.parent.memory_bytes()
    seat.close()
    steps.parent._waiting = None
    assert beside > 0 and steps.parent.memory_bytes() < with_it
