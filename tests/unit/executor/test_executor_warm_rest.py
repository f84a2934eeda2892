"""Warm parents at rest: they end their imports while nobody has or wants the machine, and are in nobody's way."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from executor import find_sandbox
from executor.execution import step_environment
from executor.sandbox import NO_OBSERVERS, Command, Ending, Observers
from executor.warm_bounds import WarmBounds
from modelium import machine_lease
from modelium.machine_lease import hold
from schemas.step_run import Limits

pytestmark = [pytest.mark.sandbox, pytest.mark.timeout(120)]

SLOW = """
import os, time
until = time.process_time() + float(os.environ["IMPORT_S"])
while time.process_time() < until:
    pass
"""
TOOLCHAIN, MODULES = "tensorflow", ("onnxruntime", "tensorflow", "tf2onnx")
"""A toolchain whose steps start without any library, and what its parent imports later."""
_idle_s = itertools.count(200)  # a sandbox of its own for each test


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter whose toolchain takes IMPORT_S of CPU time a module to import."""
    folder = tmp_path_factory.mktemp("slow")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    [packages] = folder.glob("lib/python*/site-packages")
    for name in ("annotated_types", "pydantic", "pydantic_core", "typing_inspection"):
        shutil.copytree(Path(str(find_spec(name).origin)).parent, packages / name)  # type: ignore[union-attr]
    shutil.copy(str(find_spec("typing_extensions").origin), packages)  # type: ignore[union-attr]
    for name in MODULES:
        (packages / f"{name}.py").write_text(SLOW)
    return folder / "bin/python"


@pytest.fixture(autouse=True)
def _own_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger of the test's own: other steps run on this machine meanwhile."""
    monkeypatch.setattr(machine_lease, "runtime_root", lambda: tmp_path)


class Owner:
    """A process's warm parents, one of which still imports."""

    def __init__(self, python: Path, folder: Path, import_s: float, rest=machine_lease.rest) -> None:
        self.sandbox = find_sandbox(backend="bubblewrap", warm=WarmBounds(idle_s=next(_idle_s), rest=rest))
        self.sandbox.try_warm("bare", Path(sys.executable), {})  # what children enforce is found out once
        self.before = {process.pid for process in forkable(os.getpid())}
        self._python, self._folder = python, folder
        self._environment = step_environment(1, TOOLCHAIN) | {"IMPORT_S": str(import_s)}

    def command(self, body: str = "pass") -> Command:
        workspace = self._folder / uuid.uuid4().hex
        workspace.mkdir()
        argv, python = (str(self._python), "-c", body), self._python
        return Command(argv, workspace, python, Limits(), environment=self._environment, warm=TOOLCHAIN)

    def step(self, body: str = "pass", observers: Observers = NO_OBSERVERS) -> Ending:
        """Run a step as the host does, under a place of the machine."""
        with hold(exclusive=False, at_once=2):
            ending = self.sandbox.execute(self.command(body), observers)
        assert ending.warm is not None and ending.exit_code == 0, ending
        return ending

    def parent(self) -> psutil.Process:
        family = [process for process in forkable(os.getpid()) if process.pid not in self.before]
        return min(family, key=psutil.Process.create_time)

    def imported(self) -> list[str]:
        """What a step finds imported."""
        body = f"import sys; print(*[name for name in {MODULES} if name in sys.modules])"
        return self.step(body).log.split()

    def close(self) -> None:
        self.sandbox._warm.parents.close()


def forkable(owner: int) -> list[psutil.Process]:
    return [
        process
        for process in psutil.Process(owner).children(recursive=True)
        if process.status() != psutil.STATUS_ZOMBIE  # an engine's shim may have become a child of this process
        and "executor.fork_server" in process.cmdline()
        and (process.name(), process.parent().name()) == ("python", "bwrap")
    ]


@pytest.fixture
def owner(python: Path, tmp_path: Path) -> Iterator[Callable[..., Owner]]:
    owners: list[Owner] = []

    def make(import_s: float, **more: object) -> Owner:
        owners.append(Owner(python, tmp_path, import_s, **more))
        return owners[-1]

    yield make
    for made in owners:
        made.close()


def wait_until(condition: Callable[[], object], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def is_stopped(process: psutil.Process) -> bool:
    return process.status() == psutil.STATUS_STOPPED


def used_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def is_at_rest() -> bool:
    """Whether somebody holds the place of imports at rest."""
    with machine_lease.ByteLocks(machine_lease.runtime_root() / "machine.ledger") as locks:
        return locks.free(machine_lease._PLACES[-1:]) == []


def test_when_no_step_runs_any_more_a_parent_ends_its_imports_and_gives_its_place_back(owner):
    parents = owner(import_s=0.7)
    assert len(parents.imported()) < len(MODULES)
    wait_until(is_at_rest)
    wait_until(lambda: not is_at_rest())
    wait_until(lambda: is_stopped(parents.parent()))
    assert used_s(parents.parent()) > 0.7 * len(MODULES)
    assert parents.imported() == list(MODULES)
    used = used_s(parents.parent())
    time.sleep(0.5)
    assert not is_at_rest() and used_s(parents.parent()) - used < 0.05


def test_a_place_is_given_back_as_soon_as_a_parent_says_that_it_is_idle(owner):
    times: list[float] = []

    @contextlib.contextmanager
    def rest() -> Iterator[Callable[[], bool]]:
        times.append(time.monotonic())
        yield lambda: True
        times.append(time.monotonic())

    parents = owner(import_s=0.0, rest=rest)
    parents.step()
    wait_until(lambda: times)
    time.sleep(1.5)
    assert len(times) % 2 == 0 and sum(e - b for b, e in zip(times[::2], times[1::2], strict=True)) < 1.0


def test_a_step_that_arrives_meanwhile_has_its_place_at_once_and_waits_for_one_module_at_most(owner):
    parents = owner(import_s=1)
    seen = parents.imported()
    wait_until(is_at_rest)
    began = time.monotonic()
    with hold(exclusive=False, at_once=1):
        assert time.monotonic() - began < 0.5
    assert len(seen) < len(parents.imported()) < len(MODULES)


def test_a_step_of_another_process_has_no_parent_import_beside_it(owner):
    parents = owner(import_s=2)
    parents.step()
    parent = parents.parent()
    wait_until(lambda: is_at_rest() and not is_stopped(parent))
    with hold(exclusive=False, at_once=2):
        wait_until(lambda: is_stopped(parent) and not is_at_rest(), 2)
        used = used_s(parent)
        time.sleep(0.5)
        assert is_stopped(parent) and used_s(parent) == used
    wait_until(lambda: used_s(parent) > used)


def test_who_wants_the_machine_alone_gets_it_at_once_and_nothing_imports_meanwhile(owner):
    parents = owner(import_s=2)
    parents.step()
    parent = parents.parent()
    with hold(exclusive=False, at_once=2) as lease:
        lease.take_machine()
        used = used_s(parent)
        time.sleep(0.5)
        assert is_stopped(parent) and used_s(parent) == used
    wait_until(lambda: is_at_rest() and not is_stopped(parent))
    began = time.monotonic()
    with hold(exclusive=True):
        assert time.monotonic() - began < 0.5
        used = used_s(parent)
        time.sleep(0.5)
        assert is_stopped(parent) and used_s(parent) == used


def test_while_a_step_runs_here_parents_import_beside_it_without_the_place(owner):
    parents = owner(import_s=0.7)
    running, enough = threading.Event(), threading.Event()
    observers = Observers(on_log=lambda text: running.set(), should_stop=enough.is_set)
    parents.step()
    thread = threading.Thread(
        target=lambda: parents.sandbox.execute(
            parents.command("import time; print(1, flush=True); time.sleep(60)"), observers
        )
    )
    with hold(exclusive=False, at_once=2):
        thread.start()
        try:
            assert running.wait(20)
            wait_until(lambda: used_s(parents.parent()) > 0.7 * len(MODULES))
            assert not is_at_rest()
        finally:
            enough.set()
            thread.join(timeout=20)


def test_one_that_grows_too_large_while_it_rests_is_not_kept(owner, caplog):
    parents = owner(import_s=2)
    parents.step()
    parent = parents.parent()
    wait_until(lambda: is_at_rest() and not is_stopped(parent))
    object.__setattr__(parents.sandbox._warm.parents._bounds, "memory_bytes", 1 << 20)
    wait_until(lambda: not parent.is_running(), 2)
    wait_until(lambda: not is_at_rest())


def test_that_a_parent_was_idle_hides_no_reason_why_it_can_not_be_forked(tmp_path, caplog):
    # onnxruntime's telemetry runs in a thread of its own.
    warm = find_sandbox(warm=WarmBounds(idle_s=next(_idle_s)))
    (tmp_path / "work").mkdir()
    argv, python = (sys.executable, "-P", "-c", "pass"), Path(sys.executable)
    command = Command(argv, tmp_path / "work", python, Limits(), warm="onnx")
    warm.prepare(command)
    parents = warm._warm.parents
    with contextlib.suppress(IndexError):
        wait_until(lambda: parents._refused or not parents._ready()[0].imports)
    assert warm.execute(command).warm is None and "it runs 2 threads" in caplog.text


def test_an_owner_that_ends_in_a_rest_leaves_neither_a_process_nor_a_place_held(python, tmp_path):
    script = textwrap.dedent(f"""
        import sys, time
        from pathlib import Path
        from executor import find_sandbox
        from executor.sandbox import Command
        from executor.warm_bounds import WarmBounds
        from modelium import machine_lease
        from schemas.step_run import Limits
        machine_lease.runtime_root = lambda: Path({str(tmp_path)!r})
        python = Path({str(python)!r})
        variables = {step_environment(1, TOOLCHAIN) | {"IMPORT_S": "1.5"}!r}
        command = Command((str(python), "-c", "pass"), Path({str(tmp_path)!r}), python, Limits(), environment=variables,
                          warm={TOOLCHAIN!r})
        sandbox = find_sandbox(warm=WarmBounds(rest=machine_lease.rest))
        sandbox.try_warm("bare", Path(sys.executable), {{}})
        assert sandbox.execute(command).warm is not None
        print("idle", flush=True)
        time.sleep(60)
        """)
    for number in (signal.SIGKILL, signal.SIGTERM):
        process = subprocess.Popen([sys.executable, "-P", "-c", script], stdout=subprocess.PIPE, text=True, cwd="/")
        assert process.stdout is not None and process.stdout.readline() == "idle\n"
        wait_until(is_at_rest)
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) == 10 and not all(map(is_stopped, forkable(process.pid)))
        process.send_signal(number)
        process.wait()
        process.stdout.close()
        _, alive = psutil.wait_procs(family, timeout=5)
        assert [left for left in alive if left.status() != psutil.STATUS_ZOMBIE] == []
        assert not is_at_rest()


def test_what_workers_and_commands_keep_rests_by_the_ledger_of_the_machine(context):
    bounds = context.settings.warm()
    with bounds.rest() as is_free:
        assert is_free() and is_at_rest()
        with hold(exclusive=False):
            assert not is_free()
        assert is_free()
