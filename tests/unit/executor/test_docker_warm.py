"""Containers that wait for one step each: what steps share (nothing), what they are bounded by, and how all end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import docker
import psutil
import pytest

from executor import StepSpec, docker_warm, find_sandbox, prepare, run
from executor.docker_sandbox import DockerSandbox
from executor.execution import step_environment
from executor.find import DockerOptions
from executor.sandbox import Command, Ending, Observers
from executor.toolchain import Toolchain
from executor.warm_bounds import WarmBounds
from executor.warm_failed import WarmFailed
from executor.workspace import sweep
from modelium import doctor
from modelium.context import Context
from modelium.settings import Settings
from schemas.step_io import StepRequest
from schemas.step_run import Limits

pytestmark = [pytest.mark.docker, pytest.mark.timeout(120)]
both_warm = pytest.mark.parametrize("sandbox", ["docker_warm"], indirect=True)
PYTHON = Path(sys.executable)
LIMITS = Limits(memory_bytes=512 << 20, cpus=1, processes=32, timeout_s=30)


def code(text: str) -> str:
    return textwrap.dedent(text)


@pytest.fixture
def warm(docker_engine) -> Iterator[DockerSandbox]:
    """A sandbox of its own, with nothing waiting yet."""
    sandbox = DockerSandbox(docker_engine.host, warm=WarmBounds())
    yield sandbox
    sandbox.close()
    assert docker_engine.containers() == []


@pytest.fixture
def cold(docker_engine):
    return find_sandbox(backend="docker", docker=DockerOptions(docker_engine.host))


def command(folder: Path, body: str = "pass", *, limits: Limits = LIMITS, **more) -> Command:
    folder.mkdir(exist_ok=True)
    return Command(**{"argv": (str(PYTHON), "-c", body), "workspace": folder, "interpreter": PYTHON, "limits": limits,
                      "warm": "bare", **more})  # fmt: skip


def wait_until(condition, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


LOOK = """
import json, os
names = sorted(os.readlink("/proc/self/ns/" + n) for n in os.listdir("/proc/self/ns"))
boot = open("/proc/1/stat").read().split()[21]
for folder in ("/tmp", "/dev/shm", "/step/out"):
    names.append([folder, os.listdir(folder)])
    open(folder + "/left", "w").write("x")
print(json.dumps([os.uname().nodename, boot, names]))
"""


def test_each_step_has_a_container_of_its_own_with_nothing_of_the_one_before(
    warm, tmp_path, docker_engine, seen_in_tmp
):
    client = docker.APIClient(docker_engine.host)
    seen, ids = [], []
    for number in range(3):
        step = command(tmp_path / str(number), LOOK)
        warm.await_warm(step)
        [waiting] = docker_engine.containers()
        ids.append(waiting["Id"])
        ending = warm.execute(step)
        assert ending.warm is not None and ending.exit_code == 0, ending
        seen.append(ending.log)
        with pytest.raises(docker.errors.NotFound):
            client.inspect_container(waiting["Id"])
        assert [path.name for path in (step.workspace / "out").iterdir()] == ["left"]
    client.close()
    assert len(set(ids)) == len(set(seen)) == 3
    tmp = json.dumps(seen_in_tmp)
    assert all(f'["/tmp", {tmp}], ["/dev/shm", []], ["/step/out", []]' in log for log in seen)


def test_what_waits_has_imported_and_shut_itself_in_but_has_nothing_of_a_step(warm, tmp_path, docker_engine):
    (tmp_path / "model").write_text("the model")
    step = command(
        tmp_path / "step",
        "import sys; print('onnx' in sys.modules, open('/step/in/model').read())",
        inputs={"model": tmp_path / "model"},
        environment={"OMP_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"},
        warm="onnx",
    )
    warm.await_warm(step)
    [waiting] = docker_engine.containers()
    with docker.APIClient(docker_engine.host) as client:
        told = client.inspect_container(waiting["Id"])
    [shown] = [mount["Source"] for mount in told["Mounts"] if mount["Destination"] == "/step"]
    assert sorted(p.name for p in Path(shown).rglob("*")) == ["in", "out"]
    assert [mount["Destination"] for mount in told["Mounts"] if mount["RW"]] == ["/step/out"]
    assert "the model" not in str(told) and str(tmp_path / "model") not in str(told)
    assert warm.execute(step).log == "True the model\n"


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="system call numbers of x86-64")
def test_threads_that_a_library_started_have_given_up_what_the_step_has(warm, tmp_path):
    if not warm.isolation(LIMITS).landlock:
        pytest.skip("this kernel has no Landlock")
    # OpenBLAS makes threads when it is imported. Each is made to write to a device that only Landlock denies.
    body = """
    import ctypes, os, time
    libc, told = ctypes.CDLL(None), []
    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def asked(number):
        try:
            told.append(os.close(os.open("/dev/random", os.O_WRONLY)))
        except OSError as error:
            told.append(error.errno)
    libc.signal(10, asked)
    threads = os.listdir("/proc/self/task")
    for thread in threads:
        libc.syscall(234, os.getpid(), int(thread), 10)
        time.sleep(0.1)
    print(len(threads) > 1, len(told) == len(threads), set(told))
    """
    environment = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "2")
    step = command(tmp_path / "step", code(body), environment=environment, warm="onnx")
    warm.await_warm(step)
    ending = warm.execute(step)
    assert ending.warm is not None and ending.log == "True True {13}\n", ending


@both_warm
def test_the_stored_file_is_shown_and_neither_changed_nor_lost(box, tmp_path):
    folder = tmp_path / "model"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "weights").write_bytes(b"w" * 100)
    (folder / "config").write_text("{}")
    for path in (folder / "deep" / "weights", folder / "config"):
        path.chmod(0o666)
    before = [(p.stat().st_ino, p.stat().st_mode, p.stat().st_nlink) for p in sorted(folder.rglob("*"))]
    seen = box(
        code("""
        import os
        for root, folders, files in os.walk("/step/in"):
            print(root, sorted(folders), sorted(files))
            for name in files + folders:
                path = os.path.join(root, name)
                for attempt in (lambda: open(path, "r+b").write(b"changed"), lambda: os.truncate(path, 0),
                                lambda: os.chmod(path, 0o777), lambda: os.unlink(path), lambda: os.utime(path),
                                lambda: os.rename(path, "/step/out/x"), lambda: os.link(path, "/step/out/y"),
                                lambda: os.setxattr(path, "user.x", b"1")):
                    try:
                        attempt()
                        print("CHANGED", path)
                    except OSError:
                        pass
        print(os.listdir("/step/out"))
        """),
        inputs={"model": folder},
    )
    assert seen.log.splitlines() == [
        "/step/in ['model'] []",
        "/step/in/model ['deep'] ['config']",
        "/step/in/model/deep [] ['weights']",
        "[]",
    ]
    assert (folder / "deep" / "weights").read_bytes() == b"w" * 100 and (folder / "config").read_text() == "{}"
    assert [(p.stat().st_ino, p.stat().st_mode, p.stat().st_nlink) for p in sorted(folder.rglob("*"))] == before


def test_a_step_of_another_kind_starts_cold(warm, tmp_path):
    limits = ({"memory_bytes": 600 << 20}, {"cpus": 0.5}, {"processes": 33}, {"workspace_bytes": 1 << 20})
    others = [
        *({"limits": LIMITS.model_copy(update=limit)} for limit in limits),
        *({"environment": {"OMP_NUM_THREADS": "3"}}, {"warm": "onnx"}, {"warm": None}, {"beside": (PYTHON,)}),
    ]
    warm.await_warm(command(tmp_path / "one"))
    for number, other in enumerate(others):
        assert warm.execute(command(tmp_path / str(number), **other)).warm is None, other
    warm.await_warm(command(tmp_path / "one"))
    assert warm.execute(command(tmp_path / "two")).warm is not None


def test_what_cannot_appear_in_a_mounted_folder_starts_cold_and_works(warm, tmp_path, caplog):
    elsewhere = Path("/dev/shm") / f"modelium-test-{os.getpid()}"
    elsewhere.write_text("far")
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "link").symlink_to("nowhere")
    many = tmp_path / "many"
    many.mkdir()
    for number in range(1001):
        (many / str(number)).touch()
    try:
        for number, source in enumerate((elsewhere, linked, many)):
            look = "import os; print(os.path.exists('/step/in/x'))"
            step = command(tmp_path / str(number), look, inputs={"x": source})
            warm.await_warm(step)
            ending = warm.execute(step)
            assert ending.warm is None and ending.log == "True\n", ending
    finally:
        elsewhere.unlink()
    for reason in ("another file system", "more than files and folders", "more than 1000 files"):
        assert caplog.text.count(reason) == 1


def test_the_first_step_waits_for_nothing_and_a_later_one_is_warm(warm, tmp_path):
    assert warm.execute(command(tmp_path / "a")).warm is None
    wait_until(warm.idle)
    assert warm.execute(command(tmp_path / "b")).warm is not None


def test_one_that_was_got_ready_beforehand_is_there_for_the_first_step(warm, onnx_step, outcome_of, tmp_path):
    prepare(onnx_step.toolchain, workspaces=tmp_path / "workspaces", sandbox=warm, limits=onnx_step.limits, threads=2)
    wait_until(warm.idle)
    assert outcome_of(warm, onnx_step).warm


def test_a_step_in_a_hurry_takes_none_that_still_imports(warm, tmp_path):
    environment = step_environment(1, "torch")
    warm.prepare(command(tmp_path / "a", environment=environment, warm="torch"))
    wait_until(lambda: warm._warm.pool._waiting)
    assert warm.execute(command(tmp_path / "b", environment=environment, warm="torch", hurried=True)).warm is None
    wait_until(warm.idle)
    assert warm.execute(command(tmp_path / "c", environment=environment, warm="torch", hurried=True)).warm is not None


def test_one_that_is_still_importing_is_taken_and_goes_on_from_there(warm, tmp_path):
    body = "import sys; print('executor.child' in sys.modules)"
    environment = step_environment(1, "torch")
    warm.execute(command(tmp_path / "a", environment=environment, warm="torch"))
    wait_until(lambda: warm._warm.pool._waiting)
    ending = warm.execute(command(tmp_path / "b", body, environment=environment, warm="torch"))
    assert ending.warm is not None and ending.exit_code == 0, ending


def test_one_that_died_while_it_waited_is_a_cold_start(warm, tmp_path, docker_engine, caplog):
    step = command(tmp_path / "a", "print('ran')")
    warm.await_warm(step)
    [waiting] = docker_engine.containers()
    with docker.APIClient(docker_engine.host) as client:
        client.kill(waiting["Id"])
        ending = warm.execute(step)
    assert ending.warm is None and ending.log == "ran\n"
    assert "it ended before it was asked" in caplog.text
    warm.await_warm(step)  # what happened once is not for ever
    assert warm.execute(step).warm is not None


def test_the_pool_is_bounded_in_number_and_time(docker_engine, tmp_path):
    # Longer than a busy machine takes to make one.
    warm = DockerSandbox(docker_engine.host, warm=WarmBounds(parents=2, idle_s=8))
    for name in ("a", "b", "c"):
        warm.await_warm(command(tmp_path / "step", environment={"NAME": name}))
        assert len(docker_engine.containers()) <= 2
    names = {kind.like.environment["NAME"] for kind in warm._warm.pool._waiting}
    assert names == {"b", "c"}
    # A container's folder goes after the container.
    wait_until(lambda: docker_engine.containers() == [] and not list(tmp_path.glob("step-*")))
    warm.close()


def test_one_too_large_for_the_settings_is_not_kept_and_the_step_starts_cold(docker_engine, tmp_path, caplog):
    warm = DockerSandbox(docker_engine.host, warm=WarmBounds(memory_bytes=1 << 20))
    with pytest.raises(WarmFailed, match="more than the settings allow"):
        warm.await_warm(command(tmp_path / "a"))
    for name in ("a", "b"):
        assert warm.execute(command(tmp_path / name)).warm is None
    assert caplog.text.count("more than the settings allow") == 1 and docker_engine.containers() == []
    warm.close()


def test_none_is_made_while_memory_lacks_or_somebody_has_the_machine_alone(docker_engine, tmp_path, monkeypatch):
    free = False

    @contextlib.contextmanager
    def place() -> Iterator[bool]:
        yield free

    warm = DockerSandbox(docker_engine.host, warm=WarmBounds(place=place))
    warm.execute(command(tmp_path / "a"))
    time.sleep(3)
    assert docker_engine.containers() == []
    with monkeypatch.context() as short:
        short.setattr("executor.docker_pool.available_bytes", lambda: 1 << 20)
        free = True
        time.sleep(3)
        assert docker_engine.containers() == []
    wait_until(warm.idle)
    warm.close()
    assert docker_engine.containers() == []


def test_where_it_holds_less_than_another_does_steps_start_cold(docker_engine, tmp_path, monkeypatch, caplog):
    warm = DockerSandbox(docker_engine.host, warm=WarmBounds())
    honest = docker_warm.waiting

    def loose(*arguments):
        document = honest(*arguments)
        document["HostConfig"]["ReadonlyRootfs"] = False
        document["HostConfig"]["PidsLimit"] = 0
        document["HostConfig"]["Ulimits"] = []
        return document

    monkeypatch.setattr(docker_warm, "waiting", loose)
    with pytest.raises(WarmFailed, match="does not enforce here: processes"):
        warm.await_warm(command(tmp_path / "a"))
    for name in ("a", "b"):
        assert warm.execute(command(tmp_path / name)).warm is None
    assert caplog.text.count("does not enforce here") == 1 and docker_engine.containers() == []
    warm.close()


def test_a_process_that_forks_takes_none_of_them_along(warm, tmp_path):
    step = command(tmp_path / "a", "print('ran')")
    warm.await_warm(step)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            cold = warm._warm.pool._waiting == {}
            os.write(writer, b"1" if cold else b"0")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 1) == b"1"
    for end in (reader, writer):
        os.close(end)
    assert warm.execute(step).warm is not None


def processes(mark: str) -> list[psutil.Process]:
    """What runs with ``mark`` in its variables."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("MARK") == mark:
                found.append(process)
    return found


def test_an_owner_that_is_killed_leaves_nothing_that_runs_and_the_next_one_sweeps(docker_engine, tmp_path):
    mark = uuid.uuid4().hex
    script = code(f"""
        import sys, time
        from pathlib import Path
        from executor.docker_sandbox import DockerSandbox
        from executor.sandbox import Command
        from executor.warm_bounds import WarmBounds
        from schemas.step_run import Limits
        argv = (sys.executable, "-c", "pass")
        (folder := Path({str(tmp_path)!r}) / "step").mkdir(exist_ok=True)
        variables = {{"MARK": {mark!r}}}
        command = Command(argv, folder, Path(sys.executable), Limits(), environment=variables, warm="bare")
        sandbox = DockerSandbox({docker_engine.host!r}, warm=WarmBounds())
        sandbox.await_warm(command)
        print("waits", flush=True)
        time.sleep(60)
        """)
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        owner = subprocess.Popen(
            [sys.executable, "-P", "-c", script],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd="/",
        )
        assert owner.stdout is not None and owner.stdout.readline() == "waits\n"
        inside = processes(mark)
        assert len(inside) == 3  # two shells and what waits
        owner.send_signal(number)
        owner.wait()
        owner.stdout.close()
        _, alive = psutil.wait_procs(inside, timeout=5)
        assert [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []
        DockerSandbox(docker_engine.host).carried("torch")  # as every process does once
        wait_until(lambda: docker_engine.containers() == [])
        sweep(tmp_path)
        assert not list(tmp_path.glob("step-*"))


def test_a_warm_step_gives_byte_for_byte_what_a_cold_one_gives(real_step, outcome_of, cold, warm, tmp_path):
    wanted = outcome_of(cold, real_step)
    assert not wanted.warm and wanted.import_s > 0.1
    assert not outcome_of(warm, real_step).warm
    for _ in range(2):
        wait_until(warm.idle, 90)
        outcome = outcome_of(warm, real_step)
        assert outcome.warm and outcome.found == wanted.found
        assert outcome.import_s < 0.1
    assert len(list((tmp_path / "workspaces").glob("step-*"))) <= 1


def test_measuring_starts_cold_although_one_waits(warm, tmp_path, monkeypatch):
    heard: list[Command] = []
    warm.isolation(LIMITS)

    def execute(asked: Command, observers: Observers) -> Ending:
        heard.append(asked)
        return Ending(1, None, "", 0, None, None)

    monkeypatch.setattr(warm, "execute", execute)
    for kind in ("measure", "onnx_optimize"):
        run(StepSpec(StepRequest(kind=kind), Toolchain("onnx")), workspaces=tmp_path / "w", sandbox=warm).close()
    assert [asked.timed for asked in heard] == [True, False]
    monkeypatch.undo()
    like = command(tmp_path / "timed")
    warm.await_warm(like)
    ending = warm.execute(replace(like, timed=True), Observers())
    assert ending.warm is None and warm.idle()


def test_the_doctor_tries_a_warm_start(docker_engine, tmp_path):
    def check(**more: object) -> doctor.Check:
        settings = Settings(home=tmp_path / "home", sandbox="docker", docker_host=docker_engine.host, **more)
        return doctor._warm_starts(Context(settings))

    found = check()
    assert found.level == "ok" and "ms" in found.found, found
    assert "switched off" in check(warm_parents=0).found
    assert docker_engine.containers() == []


def test_a_place_of_the_machine_is_held_while_it_imports_and_given_back(docker_engine, tmp_path):
    held: list[str] = []

    @contextlib.contextmanager
    def place() -> Iterator[bool]:
        held.append("taken")
        yield True
        held.append("given")

    warm = DockerSandbox(docker_engine.host, warm=WarmBounds(place=place))
    warm.await_warm(command(tmp_path / "a"))
    wait_until(lambda: held == ["taken", "given"])
    warm.close()
