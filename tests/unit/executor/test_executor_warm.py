"""Warm starts: what a step can't reach from a child of a warm parent, that it does as a cold one, how all end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from executor import find_sandbox
from executor.bwrap_sandbox import BwrapSandbox
from executor.execution import step_environment
from executor.find import _bubblewrap
from executor.probing import probe
from executor.sandbox import Command, Ending, Observers
from executor.warm_bounds import WarmBounds, WarmKey
from executor.warm_failed import WarmFailed
from modelium import doctor
from schemas.step_run import Limits

pytestmark = [pytest.mark.sandbox, pytest.mark.timeout(120)]


def code(text: str) -> str:
    return textwrap.dedent(text)


@pytest.fixture(scope="session")
def sandbox():
    return find_sandbox(backend="bubblewrap", warm=WarmBounds())


@pytest.fixture(scope="session")
def cold():
    return find_sandbox(backend="bubblewrap")


def parents_of(owner: int) -> list[psutil.Process]:
    """The interpreters that wait to be forked, below ``owner``."""
    return [
        process
        for process in psutil.Process(owner).children(recursive=True)
        if process.status() != psutil.STATUS_ZOMBIE  # an engine's shim may have become a child of this process
        and "executor.fork_server" in process.cmdline()
        and (process.name(), process.parent().name()) == ("python", "bwrap")
    ]


class Sibling:
    """Another warm step of the same parent, which runs meanwhile and holds a secret."""

    def __init__(self, box) -> None:
        self.secret = uuid.uuid4().hex
        self._up = threading.Event()
        self._stop = threading.Event()
        body = code(f"""
            import ctypes, os, socket, time
            secret = {self.secret!r}
            for path in ("/tmp/secret", "/dev/shm/secret", "/step/out/secret"):
                open(path, "w").write(secret)
            listening = socket.socket(socket.AF_UNIX)
            listening.bind("\\0sibling")
            listening.listen()
            libc = ctypes.CDLL(None)
            print(libc.shmget(0x5EC7E7, 4096, 0o1666), libc.semget(0x5EC7E7, 1, 0o1666), flush=True)
            time.sleep(60)
        """)
        stop = self._stop.is_set
        observers = Observers(on_log=lambda text: self._up.set(), should_stop=stop)
        self._thread = threading.Thread(target=lambda: box(body, observers))
        self._thread.start()
        assert self._up.wait(20)

    def end(self) -> None:
        self._stop.set()
        self._thread.join(timeout=20)
        assert not self._thread.is_alive()


@pytest.fixture
def sibling(box):
    found = Sibling(box)
    yield found
    found.end()


def test_it_sees_two_processes_and_its_own_files_beside_a_running_sibling(box, sibling, tmp_path, seen_in_tmp):
    seen = box(
        code("""
        import os
        print(sorted(n for n in os.listdir("/proc") if n.isdigit()), os.getpid(), os.getppid())
        print(os.getcwd(), os.listdir("/step"), os.listdir("/step/out"), os.listdir("/tmp"), os.listdir("/dev/shm"))
        print(os.listdir("/dev/pts"), os.readlink("/proc/self/root"), os.readlink("/proc/self/cwd"))
        print(os.listdir("/proc/self/root/step"))
        """)
    )
    assert seen.log.splitlines() == [
        "['1', '2'] 2 1",
        f"/step ['out'] [] {seen_in_tmp} []",
        "['ptmx'] / /step",
        "['out']",
    ]
    mounts = box("print(open('/proc/self/mountinfo').read())").log
    assert str(box.out) in mounts and mounts.count(str(tmp_path)) == 1


def test_it_reaches_neither_parent_nor_sibling_by_pid(box, sibling):
    [parent] = parents_of(os.getpid())[:1]
    seen = box(
        code(f"""
        import ctypes, os, signal
        libc = ctypes.CDLL(None, use_errno=True)
        for pid in [*range(3, 5000), {parent.pid}, {os.getpid()}]:
            for act in (lambda: os.kill(pid, 0), lambda: os.kill(pid, signal.SIGKILL), lambda: os.pidfd_open(pid)):
                try:
                    act()
                    print("REACHED", pid)
                except ProcessLookupError:
                    pass
            if os.path.exists(f"/proc/{{pid}}"):
                print("SHOWN", pid)
        for pid in (1, 3, {parent.pid}):
            buffer = ctypes.create_string_buffer(8)
            if libc.ptrace(16, pid, 0, 0) == 0 or libc.process_vm_readv(pid, buffer, 1, buffer, 1, 0) >= 0:
                print("TRACED", pid)
        for path in ("/proc/1/mem", "/proc/1/fd", "/proc/1/ns", "/proc/1/root", f"/proc/{{os.getppid()}}/environ"):
            if os.path.exists(path):
                print("SHOWN", path)
        try:
            os.kill(1, signal.SIGKILL)
        except PermissionError:
            pass
        os.kill(0, 0), os.killpg(0, 0)
        try:
            os.kill(-1, signal.SIGKILL)
        except ProcessLookupError:
            print("done")
        """)
    )
    assert seen.log == "done\n"
    assert parent.is_running() and box("print('next')").log == "next\n"


def test_it_inherits_no_shared_memory_sockets_or_descriptors(box, sibling):
    seen = box(
        code("""
        import ctypes, os, socket
        print([line for line in open("/proc/self/maps") if line.split()[1][1] == "w" and line.split()[1][3] == "s"])
        print(open("/proc/net/unix").read().splitlines()[1:])
        print(sorted(os.listdir("/proc/self/fd"))[:4], len(os.listdir("/proc/self/fd")))
        libc = ctypes.CDLL(None)
        print(libc.shmget(0x5EC7E7, 4096, 0o666), libc.semget(0x5EC7E7, 1, 0o666))
        try:
            socket.socket(socket.AF_UNIX).connect("\\0sibling")
        except OSError as error:
            print(error.errno)
        """)
    )
    # Descriptor 5 is the listing itself; 4 is the end of a pipe to process 1, as is shown below.
    assert seen.log.splitlines() == ["[]", "[]", "['0', '1', '2', '3'] 6", "-1 -1", "111"]


def test_what_a_finished_step_had_in_memory_is_not_in_the_next(box):
    dump = """
import os
with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory, open("/step/out/dump", "wb") as out:
    for line in maps:
        where, mode = line.split()[:2]
        if mode.startswith("r") and "[v" not in line:
            first, last = (int(x, 16) for x in where.split("-"))
            memory.seek(first)
            try:
                while first < last and (chunk := memory.read(min(1 << 16, last - first))):
                    out.write(chunk)
                    first += len(chunk)
            except OSError:
                pass
"""
    secret = uuid.uuid4().hex
    room = {"workspace_bytes": 1 << 30}
    box(f"held = [{secret!r} + str(n) for n in range(100_000)]\nopen('/tmp/x', 'w').write(held[0])\n" + dump, **room)
    assert secret.encode() in (box.out / "dump").read_bytes()
    box(dump, **room)
    memory = (box.out / "dump").read_bytes()
    assert len(memory) > 1 << 20 and secret.encode() not in memory


def test_filling_every_room_it_has_takes_none_from_parent_or_next(box, seen_in_tmp):
    box(
        code("""
        import os
        for folder in ("/tmp", "/dev/shm"):
            try:
                with open(folder + "/x", "wb", buffering=0) as file:
                    while True:
                        file.write(bytes(1 << 20))
            except OSError:
                pass
        while True:
            try:
                os.fork() or os.wait()
            except OSError:
                os._exit(0)
        """)
    )
    seen = box("import os; print(os.listdir('/tmp'), os.listdir('/dev/shm')); os.fork() or os._exit(0); os.wait()")
    assert seen.log == f"{seen_in_tmp} []\n" and seen.exit_code == 0


def test_a_fork_bomb_in_one_leaves_the_other_its_processes(box):
    stop = threading.Event()
    up = threading.Event()
    bomb = code("""
        import os, time
        try:
            while os.fork():
                pass
            time.sleep(60)
        except OSError:
            print("full", flush=True)
            time.sleep(60)
    """)
    observers = Observers(on_log=lambda text: up.set(), should_stop=stop.is_set)
    thread = threading.Thread(target=lambda: box(bomb, observers))
    thread.start()
    assert up.wait(20)
    try:
        seen = box("import os\nfor _ in range(8): os.fork() or os._exit(0)\nprint('made')")
    finally:
        stop.set()
        thread.join()
    assert seen.log == "made\n"


@pytest.mark.parametrize(
    ("body", "exit_code"),
    [
        ("raise SystemExit(3)", 3),
        ("import sys; sys.exit('no')", 1),
        ("1 / 0", 1),
        ("import os; os._exit(7)", 7),
        ("import os; os.kill(os.getpid(), 9)", 137),
        ("import os; os.abort()", 134),
    ],
)
def test_it_ends_as_an_interpreter_does(box, body, exit_code):
    seen = box(body)
    assert (seen.exit_code, seen.error) == (exit_code, None)
    assert "ZeroDivisionError" in seen.log if "/" in body else True


def test_it_ends_at_once_when_it_says_that_it_is_done_whatever_it_leaves_running(box):
    seen = box(
        code("""
        import os, subprocess, sys, time
        writes = "import time\\nwhile True:\\n    open('/step/out/late', 'a').write('.')\\n    time.sleep(0.001)"
        subprocess.Popen([sys.executable, "-c", f"exec({writes!r})"], start_new_session=True)
        while not os.path.exists("/step/out/late"):
            time.sleep(0.01)
        os.write(int(os.environ["MODELIUM_DONE_FD"]), b"1")
        while True:
            open("/step/out/late", "a").write("after")
        """)
    )
    written = (box.out / "late").read_bytes()
    assert (seen.exit_code, seen.error) == (0, None)
    time.sleep(0.2)
    assert (box.out / "late").read_bytes() == written  # nobody is left who writes


@pytest.mark.parametrize(
    "before",
    [
        "os.close(int(os.environ['MODELIUM_DONE_FD']))",
        "os.dup2(1, int(os.environ['MODELIUM_DONE_FD']))",
        "subprocess.run(['true'])",
    ],
)
def test_how_it_ends_is_seen_when_it_never_says_that_it_is_done(box, before):
    seen = box(f"import os, signal, subprocess\n{before}\nos.kill(os.getpid(), signal.SIGSEGV)")
    assert (seen.exit_code, seen.error) == (128 + signal.SIGSEGV, None)


def test_the_seconds_of_a_step_that_says_that_it_is_done_are_counted(box, monkeypatch):
    monkeypatch.setattr("executor.cgroup.Cgroup.cpu_s", lambda self: None)  # as where no group counts them
    seen = box(
        code("""
        import os, time
        while time.process_time() < 0.6:
            pass
        os.write(int(os.environ["MODELIUM_DONE_FD"]), b"1")
        time.sleep(60)
        """)
    )
    assert seen.cpu_s >= 0.5


def test_what_it_starts_in_the_background_is_reaped_while_it_runs(box):
    seen = box(
        code("""
        import os, time
        for _ in range(20):
            if os.fork() == 0:
                if os.fork() == 0:
                    os._exit(0)
                os._exit(0)
            os.wait()
        for _ in range(200):
            left = [n for n in os.listdir("/proc") if n.isdigit()]
            if left == ["1", "2"]:
                break
            time.sleep(0.05)
        print(left)
        """)
    )
    assert seen.log == "['1', '2']\n"


def test_chance_differs_from_step_to_step_as_in_new_processes(box):
    draw = "import random, uuid, os; print(random.random(), uuid.uuid4(), os.urandom(4).hex())"
    assert len({box(draw).log for _ in range(3)}) == 3
    assert box("print(hash('x'))").log == box("print(hash('x'))").log


def test_a_parent_that_dies_takes_its_steps_along_and_the_step_starts_cold(sandbox, tmp_path):
    warm = find_sandbox(warm=WarmBounds(idle_s=77))
    workspace = tmp_path / "w"
    workspace.mkdir()
    heard: list[str] = []
    endings: list[Ending] = []
    body = code("""
        import os, time
        os.write(1, f"up {os.listdir('/step/out')}\\n".encode())
        open("/step/out/x", "w")
        time.sleep(2)
    """)
    command = Command((sys.executable, "-c", body), workspace, Path(sys.executable), Limits(), warm="bare")
    before = {process.pid for process in parents_of(os.getpid())}
    thread = threading.Thread(target=lambda: endings.append(warm.execute(command, Observers(on_log=heard.append))))
    thread.start()
    deadline = time.monotonic() + 20
    while not heard and time.monotonic() < deadline:
        time.sleep(0.02)
    [parent] = [process for process in parents_of(os.getpid()) if process.pid not in before]
    family = [parent, *parent.children(recursive=True)]
    parent.kill()
    thread.join()
    assert len(family) >= 3  # the parent, process 1 of the step, the step; and of the step after it
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in family)
    [ending] = endings
    assert ending.exit_code == 0 and ending.warm is None
    assert "".join(heard) == "up []\nup []\n"
    assert warm.execute(command).warm is not None  # the next one asks anew


def test_the_least_recently_used_parent_makes_room_and_idle_ones_end(sandbox, tmp_path):
    warm = find_sandbox(warm=WarmBounds(parents=1, idle_s=3))
    before = {process.pid for process in parents_of(os.getpid())}

    def start(name: str) -> list[int]:
        workspace = tmp_path / name
        workspace.mkdir()
        argv = (sys.executable, "-c", "pass")
        ending = warm.execute(Command(argv, workspace, Path(sys.executable), Limits(), warm=name))
        assert ending.warm is not None
        return [process.pid for process in parents_of(os.getpid()) if process.pid not in before]

    [first] = start("one")
    [second] = start("two")
    assert first != second and not psutil.pid_exists(first)
    deadline = time.monotonic() + 20
    while psutil.pid_exists(second) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not psutil.pid_exists(second)


def test_a_toolchain_below_tmp_is_there_in_the_steps(sandbox, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    [packages] = (tmp_path / "venv/lib").glob("python*/site-packages")
    for name in ("annotated_types", "pydantic", "pydantic_core", "typing_inspection"):
        shutil.copytree(Path(find_spec(name).origin).parent, packages / name)
    shutil.copy(find_spec("typing_extensions").origin, packages)
    (packages / "asked_for_late.py").write_text("HERE = 'here'")
    (tmp_path / "work").mkdir()
    body = (
        "import os, asked_for_late; print(asked_for_late.HERE, os.listdir('/tmp'))\nopen(asked_for_late.__file__, 'w')"
    )
    command = Command((str(python), "-c", body), tmp_path / "work", python, Limits(), warm="bare")
    ending = sandbox.execute(command)
    assert tmp_path.is_relative_to("/tmp") and ending.warm is not None
    assert f"here {sorted({tmp_path.parts[2]})}\n" in ending.log and "Read-only file system" in ending.log


def test_a_hurried_step_starts_cold_until_the_parent_that_was_prepared_is_ready(sandbox, tmp_path):
    warm = find_sandbox(backend="bubblewrap", warm=WarmBounds(idle_s=117))

    environment = step_environment(1, "onnx")

    def hurried() -> Ending:
        workspace = tmp_path / uuid.uuid4().hex
        workspace.mkdir()
        argv, python = (sys.executable, "-c", "pass"), Path(sys.executable)
        return warm.execute(
            Command(argv, workspace, python, Limits(), environment=environment, warm="onnx", hurried=True)
        )

    assert hurried().warm is None and not warm._warm.parents._parents  # in such a hurry that none is started for it
    warm.prepare(Command((), tmp_path / "next", Path(sys.executable), Limits(), environment=environment, warm="onnx"))
    deadline = time.monotonic() + 20
    while hurried().warm is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert hurried().warm is not None


def test_a_parent_starts_before_the_sandbox_is_probed(context, monkeypatch):
    begun = []
    make = BwrapSandbox.__init__

    def made(self, *args):
        make(self, *args)
        sandboxes.append(self)

    def looked(sandbox, *args):
        begun.append(len(sandboxes[0]._warm.parents._parents))
        return probe(sandbox, *args)

    sandboxes = []
    _bubblewrap.cache_clear()
    monkeypatch.setattr(BwrapSandbox, "__init__", made)
    monkeypatch.setattr("executor.bwrap_sandbox.probe", looked)
    try:
        context._prepare(["onnx"])
        assert begun == [1]
        assert context.sandbox is sandboxes[0]
        sandboxes[0]._warm.parents.close()
    finally:
        _bubblewrap.cache_clear()


@pytest.mark.parametrize("begun", [False, True])
def test_who_ends_waits_for_no_parent_to_be_ready(sandbox, begun):
    warm = find_sandbox(backend="bubblewrap", warm=WarmBounds(idle_s=118 + begun / 2))
    before = {process.pid for process in parents_of(os.getpid())}
    key = WarmKey("torch", Path(sys.executable), ())
    warm._warm.parents.prepare(key)
    future = warm._warm.parents._parents[key]
    deadline = time.monotonic() + 20
    while begun and warm._warm.parents._starting is None and time.monotonic() < deadline:
        time.sleep(0.01)
    warm._warm.parents.close()
    with pytest.raises(WarmFailed, match="nobody waits for it"):
        future.result(timeout=20)
    assert not [process for process in parents_of(os.getpid()) if process.pid not in before]


def test_parents_are_stopped_while_no_step_runs_and_they_have_imported_all(sandbox, tmp_path):
    warm = find_sandbox(backend="bubblewrap", warm=WarmBounds(idle_s=119))
    before = {process.pid for process in parents_of(os.getpid())}
    (tmp_path / "work").mkdir()
    running = threading.Event()
    command = Command((sys.executable, "-c", "print(1); import time; time.sleep(2)"), tmp_path / "work",
                      Path(sys.executable), Limits(), warm="bare")  # fmt: skip
    observers = Observers(on_log=lambda text: running.set())
    step = threading.Thread(target=lambda: warm.execute(command, observers))
    step.start()
    assert running.wait(20)
    # Its child looks like the parent that it was forked from.
    parent = min((p for p in parents_of(os.getpid()) if p.pid not in before), key=psutil.Process.create_time)
    assert parent.status() != psutil.STATUS_STOPPED
    step.join(timeout=20)
    deadline = time.monotonic() + 20
    while parent.status() != psutil.STATUS_STOPPED and time.monotonic() < deadline:
        time.sleep(0.05)
    assert parent.status() == psutil.STATUS_STOPPED


def test_a_parent_too_large_for_the_settings_is_not_kept(sandbox, tmp_path, caplog):
    warm = find_sandbox(warm=WarmBounds(memory_bytes=1 << 20))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        argv = (sys.executable, "-c", "pass")
        ending = warm.execute(Command(argv, tmp_path / name, Path(sys.executable), Limits(), warm="bare"))
        assert ending.exit_code == 0
        time.sleep(0.5)
    assert ending.warm is None and "more than the settings allow" in caplog.text


def test_a_process_that_forks_has_parents_of_its_own(tmp_path):
    script = code(f"""
        import os, sys
        from pathlib import Path
        from executor import find_sandbox
        from executor.sandbox import Command
        from executor.warm_bounds import WarmBounds
        from schemas.step_run import Limits
        sandbox = find_sandbox(warm=WarmBounds())
        def step(name):
            folder = Path({str(tmp_path)!r}) / name
            folder.mkdir()
            argv = (sys.executable, "-c", "import os; print(os.getpid())")
            ending = sandbox.execute(Command(argv, folder, Path(sys.executable), Limits(), warm="bare"))
            assert ending.warm is not None and ending.log == "2\\n", ending
        step("a")
        if os.fork() == 0:
            step("b")
            os._exit(0)
        assert os.wait()[1] == 0
        step("c")
        print("done")
        """)
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, cwd="/")
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_a_warm_step_gives_byte_for_byte_what_a_cold_one_gives(real_step, outcome_of, cold, sandbox):
    wanted = outcome_of(cold, real_step)
    assert not wanted.warm
    for _ in range(2):
        outcome = outcome_of(sandbox, real_step)
        assert outcome.warm and outcome.found == wanted.found


@pytest.mark.torch
def test_torch_computes_in_parallel_in_a_child_with_the_threads_of_a_new_process(cold, sandbox, tmp_path):
    body = code("""
        import os, torch, numpy
        a = torch.rand(400, 400, generator=torch.Generator().manual_seed(1))
        print(torch.get_num_threads(), round(float((a @ a).sum()), 2), len(torch.rand(2)))
        n = numpy.ones((500, 500))
        print((n @ n).sum(), os.environ["OMP_NUM_THREADS"])
    """)
    seen = []
    for number, sandbox_ in enumerate((cold, sandbox, sandbox)):
        workspace = tmp_path / str(number)
        workspace.mkdir()
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "2")
        threads["ORT_DISABLE_TELEMETRY"] = "1"
        argv = (sys.executable, "-P", "-c", body)
        command = Command(argv, workspace, Path(sys.executable), Limits(timeout_s=60), {}, threads, (), "torch")
        seen.append(sandbox_.execute(command))
    assert seen[0].exit_code == 0, seen[0].log
    assert {ending.log for ending in seen} == {seen[0].log}
    assert [ending.warm is not None for ending in seen] == [False, True, True]


def test_a_toolchain_that_leaves_a_thread_starts_cold_and_is_not_tried_again(sandbox, tmp_path, caplog):
    # onnxruntime's telemetry runs in a thread of its own.
    warm = find_sandbox(warm=WarmBounds(idle_s=78))
    seen = []
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        argv = (sys.executable, "-P", "-c", "import time; time.sleep(0.5)")
        command = Command(argv, tmp_path / str(number), Path(sys.executable), Limits(), warm="onnx")
        ending = warm.execute(command)
        assert ending.exit_code == 0
        seen.append(ending.warm is not None)
    assert seen == [False, False, False] and "it runs 2 threads" in caplog.text


def test_it_says_why_nothing_starts_warm(cold, sandbox):
    assert isinstance(cold, BwrapSandbox) and isinstance(sandbox, BwrapSandbox)
    assert "no warm parent" in str(cold.try_warm("bare", Path(sys.executable), {}))
    assert isinstance(sandbox.try_warm("bare", Path(sys.executable), {}), float)


def test_the_doctor_tries_a_warm_start(context):
    check = doctor._warm_starts(context)
    assert check.level == "ok" and "ms" in check.found, check


def test_an_owner_that_is_terminated_leaves_no_parent(tmp_path):
    script = code(f"""
        import sys, time
        from pathlib import Path
        from executor import find_sandbox
        from executor.sandbox import Command
        from executor.warm_bounds import WarmBounds
        from schemas.step_run import Limits
        argv = (sys.executable, "-c", "pass")
        command = Command(argv, Path({str(tmp_path)!r}), Path(sys.executable), Limits(), warm="bare")
        assert find_sandbox(warm=WarmBounds()).execute(command).warm is not None
        print("idle", flush=True)
        time.sleep(60)
        """)
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        owner = subprocess.Popen([sys.executable, "-P", "-c", script], stdout=subprocess.PIPE, text=True, cwd="/")
        assert owner.stdout is not None and owner.stdout.readline() == "idle\n"
        deadline = time.monotonic() + 10
        while len(family := psutil.Process(owner.pid).children(recursive=True)) < 6 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(family) == 6  # two of bubblewrap, what waits for the owner's end, the parent, the next step's two
        owner.send_signal(number)
        owner.wait()
        owner.stdout.close()
        _, alive = psutil.wait_procs(family, timeout=5)
        assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
