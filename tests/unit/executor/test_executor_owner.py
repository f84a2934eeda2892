"""What is left of a sandbox whose owner is killed, whatever it was about to do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from executor.find import find_sandbox
from schemas.errors import SandboxUnavailable

pytestmark = pytest.mark.timeout(120)

# An owner whose launcher never asks the kernel to end it, as bubblewrap has not before its sandbox is set up.
_SLOW_LAUNCHER = """
import subprocess, sys, time
from pathlib import Path
from executor.cgroup import Cgroup
from executor.cold_start import ColdStart
from executor.pipes import Pipes
pipes = Pipes()
started = ColdStart(["/bin/sh", "-c", "sleep 1000; true"], pipes, Cgroup("", {}), Path("/"))
print(started.pid, flush=True)
sys.stdin.read()
"""
# An owner of what has left its launcher's session, as bubblewrap's process 1 has before it asks to die with its parent.
_IN_A_SESSION_OF_ITS_OWN = """
import sys, time
from pathlib import Path
from executor.cgroup import Cgroup
from executor.cold_start import ColdStart
from executor.pipes import Pipes
group = Cgroup.create()
started = ColdStart(["/bin/sh", "-c", "setsid sleep 1000; true"], Pipes(), group, Path("/"))
print(group.entrances[0] if group.entrances else "", flush=True)
sys.stdin.read()
"""
# An owner that starts one sandbox after the other, each of which would sleep.
_RESTLESS = """
import sys, threading
from pathlib import Path
from executor.find import find_sandbox
from executor.sandbox import Command, Observers
from schemas.step_run import Limits
workspace, mark = Path(sys.argv[1]), sys.argv[2]
sandbox = find_sandbox(backend="bubblewrap", warm=None)
print("ready", flush=True)
while True:
    stops = iter([False])
    command = Command(("/bin/sleep", "1000"), workspace, Path(sys.executable), Limits(), environment={"MARK": mark})
    sandbox.execute(command, Observers(should_stop=lambda: next(stops, True)))
"""


@contextmanager
def _owner(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _is_soon(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 5
    while not (is_met := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return is_met


def _in_session(leader: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def test_a_launcher_that_nothing_ends_yet_goes_with_its_owner():
    with _owner(_SLOW_LAUNCHER) as owner:
        leader = int(owner.stdout.readline())
        assert _is_soon(lambda: len(_in_session(leader)) >= 3)  # the launcher, what it started, what watches the owner
        owner.send_signal(signal.SIGKILL)
        assert _is_soon(lambda: not _in_session(leader)), _in_session(leader)


def test_what_has_left_the_session_goes_with_its_owner_by_its_control_group():
    with _owner(_IN_A_SESSION_OF_ITS_OWN) as owner:
        entrance = owner.stdout.readline().strip()
        if not entrance:
            pytest.skip("no control group can be made here")

        def inside() -> list[str]:
            return Path(entrance).read_text().split()

        assert _is_soon(lambda: len(inside()) == 2), inside()  # the launcher and what it started
        owner.send_signal(signal.SIGKILL)
        assert _is_soon(lambda: not inside()), inside()
    Path(entrance).parent.rmdir()


@pytest.mark.sandbox
def test_no_moment_of_a_start_survives_its_owner(tmp_path):
    try:
        find_sandbox(backend="bubblewrap", warm=None)
    except SandboxUnavailable as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    mark = f"owner-{os.getpid()}-{time.monotonic_ns()}"

    def left(owner: int) -> list[str]:
        found = []
        for environ in Path("/proc").glob("[0-9]*/environ"):
            try:
                said = environ.read_bytes() + (environ.parent / "cmdline").read_bytes()
            except OSError:
                continue
            if mark.encode() in said and int(environ.parent.name) not in (os.getpid(), owner):
                found.append(str(environ.parent))
        return found

    def is_gone(owner: int) -> bool:
        return not left(owner)

    for number in range(12):
        with _owner(_RESTLESS, str(tmp_path), mark) as owner:
            assert owner.stdout.readline() == "ready\n"
            time.sleep(0.003 * number)
            owner.send_signal(signal.SIGKILL)
            assert _is_soon(partial(is_gone, owner.pid)), left(owner.pid)


def test_a_step_whose_host_has_ended_reads_no_model(tmp_path):
    read, write = os.pipe()
    os.close(read)
    try:
        command = [sys.executable, "-P", "-m", "executor.child", tmp_path]
        environment = {**os.environ, "MODELIUM_PROGRESS_FD": str(write)}
        done = subprocess.run(command, env=environment, pass_fds=[write], capture_output=True, text=True, check=False)
    finally:
        os.close(write)
    assert done.returncode == 1 and "host of this step has ended" in done.stderr
    assert not any(tmp_path.iterdir())
