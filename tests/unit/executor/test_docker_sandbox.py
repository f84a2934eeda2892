"""What only the Docker sandbox has: an engine that may be absent, go away or lack something, and images."""

from __future__ import annotations

import gc
import io
import json
import re
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import docker
import pytest

from executor import find_sandbox
from executor.docker_container import OWNER_LABEL, owner
from executor.docker_image import TOOLCHAINS_LABEL
from executor.docker_sandbox import DockerSandbox
from executor.find import DockerOptions
from executor.sandbox import Command, Observers
from executor.toolchain import Toolchain, missing, versions
from schemas.errors import SandboxCrashed, SandboxUnavailable
from schemas.step_run import Limits

pytestmark = [pytest.mark.docker, pytest.mark.timeout(120)]
no_engine = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
"""The client forgets to close a socket that it cannot connect; :func:`forgotten` finds it before the test ends."""
only_docker = pytest.mark.parametrize("sandbox", ["docker"], indirect=True)
both_ways = pytest.mark.parametrize("sandbox", ["docker", "docker_warm"], indirect=True)


@pytest.fixture
def client(docker_engine):
    with docker.APIClient(docker_engine.host) as client:
        yield client


@pytest.fixture
def forgotten():
    yield
    gc.collect()


def archive(*members: tuple[str, Path | bytes | str]) -> bytes:
    """Pack files (by their path or bytes) and links (by their target)."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as packed:
        for name, what in members:
            if isinstance(what, Path):
                packed.add(what, name, filter=lambda member: None if "site-packages" in member.name else member)
                continue
            member = tarfile.TarInfo(name)
            member.mode = 0o755
            if isinstance(what, str):
                member.type, member.linkname = tarfile.SYMTYPE, what
            else:
                member.size = len(what)
            packed.addfile(member, io.BytesIO(what) if isinstance(what, bytes) else None)
    return sink.getvalue()


@pytest.fixture(scope="module")
def carrying_image(docker_engine) -> str:
    """An image with a Python of its own at a place that this machine does not have, and with variables."""
    prefix = Path(sys.base_prefix)
    python = prefix / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    library = prefix / "lib" / python.name
    binaries = [python, Path("/bin/sh"), *library.glob("lib-dynload/*.so")]
    told = subprocess.run(["ldd", *binaries], capture_output=True, text=True, check=False).stdout
    libraries = {Path(found) for found in re.findall(r"(/\S+) \(0x", told)}
    skipped = {"test", "idlelib", "tkinter", "ensurepip", "lib2to3", "site-packages"}
    label = {"onnx": {"interpreter": "/carried/bin/python", "versions": {"python": "3", "onnx": "0.1"}}}
    content = archive(
        ("carried/bin/python", python.resolve()),
        *((f"carried/lib/{python.name}/{p.name}", p) for p in library.iterdir() if p.name not in skipped),
        *((str(path).lstrip("/"), path.resolve()) for path in libraries if path.is_relative_to(prefix)),
        *((f"lib/{path.name}", path.resolve()) for path in libraries if not path.is_relative_to(prefix)),
        ("lib64/ld-linux-x86-64.so.2", Path("/lib64/ld-linux-x86-64.so.2").resolve()),
        ("bin/sh", Path("/bin/sh").resolve()),
    )
    with docker.APIClient(docker_engine.host) as client:
        changes = [f"LABEL {TOOLCHAINS_LABEL}={json.dumps(json.dumps(label))}", "ENV TOKEN=hunter2"]
        client.import_image_from_data(content, repository="carrying", tag="1", changes=changes)
    return "carrying:1"


def run(sandbox, folder: Path, code: str, python: Path = Path(sys.executable), observers: Observers | None = None):
    folder.mkdir(exist_ok=True)
    command = Command((str(python), "-I", "-S", "-u", "-c", code), folder, python, Limits(timeout_s=30))
    return sandbox.execute(command, observers or Observers())


def test_an_image_shows_its_own_toolchain_and_nothing_of_this_machine(docker_engine, carrying_image, tmp_path, client):
    sandbox = find_sandbox(backend="docker", docker=DockerOptions(docker_engine.host, carrying_image))
    isolation = sandbox.isolation(Limits())
    assert isolation.image == client.inspect_image(carrying_image)["Id"] and isolation.runtime == "runc"
    python, installed = sandbox.carried("onnx")
    tools = Toolchain("onnx", python, installed)
    assert versions(tools)["onnx"] == "0.1" and "numpy" in missing(tools)
    assert sandbox.carried("torch") is None
    code = "import os, sys; print(sys.prefix, os.path.exists('/usr/bin'), os.environ.get('TOKEN'), os.listdir('/opt'))"
    ending = run(sandbox, tmp_path / "step", code, python)
    assert ending.log == "/carried False None ['modelium']\n", ending


def test_the_image_is_looked_up_once_and_recorded_by_its_id(docker_engine, carrying_image, tmp_path, client):
    client.tag(carrying_image, "moving", "1")
    sandbox = DockerSandbox(docker_engine.host, "moving:1")
    first = sandbox.isolation(Limits()).image
    client.import_image_from_data(archive(("bin/sh", b"no")), repository="moving", tag="1")
    assert run(sandbox, tmp_path / "step", "print(1)", Path("/carried/bin/python")).log == "1\n"
    assert sandbox.isolation(Limits()).image == first != client.inspect_image("moving:1")["Id"]


def test_an_image_that_is_not_here_is_refused_and_not_pulled(docker_engine):
    with pytest.raises(SandboxUnavailable, match="no image python, and Modelium pulls none"):
        DockerSandbox(docker_engine.host, "python").isolation(Limits())


def test_an_image_with_volumes_is_refused(docker_engine, client):
    client.import_image_from_data(archive(("x", b"")), repository="volumes", tag="1", changes=["VOLUME /data"])
    with pytest.raises(SandboxUnavailable, match="declares volumes"):
        DockerSandbox(docker_engine.host, "volumes:1").isolation(Limits())


def test_a_runtime_that_the_engine_lacks_is_refused_with_those_it_has(docker_engine):
    with pytest.raises(SandboxUnavailable, match=r"no runtime runsc; it has .*runc"):
        DockerSandbox(docker_engine.host, runtime="runsc").isolation(Limits())


@no_engine
def test_without_an_engine_the_reason_names_its_socket(forgotten, tmp_path):
    with pytest.raises(SandboxUnavailable, match=str(tmp_path)) as refused:
        find_sandbox(backend="docker", docker=DockerOptions(f"unix://{tmp_path}/docker.sock"))
    assert "MODELIUM_DOCKER_HOST" in refused.value.hint


def test_an_engine_on_another_machine_is_refused():
    with pytest.raises(SandboxUnavailable, match="not on this machine"):
        DockerSandbox("tcp://10.0.0.1:2376")


@no_engine
@both_ways
def test_an_engine_killed_in_mid_step_is_an_error_to_retry_and_the_next_step_runs(forgotten, box, docker_engine):
    def kill(text: str) -> None:
        docker_engine.kill()

    began = time.monotonic()
    ending = box("import time\nprint('up')\ntime.sleep(60)", Observers(on_log=kill))
    try:
        assert isinstance(ending.error, SandboxCrashed) and ending.error.retryable
        assert "engine went away" in str(ending.error) and time.monotonic() - began < 30
        assert box.processes_left() == []
        with pytest.raises(SandboxUnavailable, match="engine at"):
            box("print('no engine')")
    finally:
        docker_engine.start()
    assert box("print('next')").log == "next\n"


def test_a_sweep_removes_containers_of_dead_owners_and_no_other(docker_engine, client):
    image = client.import_image_from_data(archive(("x", b"")), repository="nothing", tag="1")
    image = json.loads(image.strip().splitlines()[-1])["status"]
    kept = owner()
    pid, born, namespace = kept.split("-", 2)
    owners = {"alive": kept, "dead": f"{pid}-1{born}-{namespace}", "elsewhere": f"{pid}-1-4026531836-other"}
    ids = {
        name: client.create_container_from_config({"Image": image, "Cmd": ["x"], "Labels": {OWNER_LABEL: label}})["Id"]
        for name, label in owners.items()
    }
    stranger = client.create_container_from_config({"Image": image, "Cmd": ["x"]})["Id"]
    try:
        DockerSandbox(docker_engine.host).carried("torch")
        left = {container["Id"] for container in docker_engine.containers()}
        assert left == {ids["alive"], ids["elsewhere"], stranger}
    finally:
        for container in docker_engine.containers():
            client.remove_container(container["Id"])


@only_docker
def test_containers_run_side_by_side(box, tmp_path):
    logs = []

    def one(number: int) -> None:
        logs.append(run(box.sandbox, tmp_path / f"step-{number}", f"print({number})").log)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(logs) == [f"{number}\n" for number in range(4)]


@both_ways
def test_the_log_is_heard_while_it_is_written(box):
    heard = []
    box(
        "import time\nfor n in range(3): print(n); time.sleep(0.6)",
        Observers(on_log=lambda text: heard.append(time.monotonic())),
    )
    assert len(heard) >= 3 and heard[-1] - heard[0] > 1
