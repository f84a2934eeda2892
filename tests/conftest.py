"""Real services for tests: skipped locally with a reason, failed in CI."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn
from uuid import uuid4

import hypothesis
import psutil
import pytest

from executor.toolchain import Toolchain, missing
from modelium.context import Context
from modelium.db import Database
from modelium.settings import Settings

CHECKOUT = Path(__file__).parent.parent
S3_SECRET = "the-secret-of-the-test-bucket"

# How long an example takes says something of the machine, nothing of the code.
hypothesis.settings.register_profile("modelium", deadline=None)
hypothesis.settings.load_profile("modelium")


def absent(service: str, mend: str) -> NoReturn:
    """Skip the test that needs ``service``; fail it in CI, where everything has to be there."""
    message = f"{service} is not here: {mend}"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="session")
def redis_server() -> str:
    """The path of a Redis server."""
    return shutil.which("redis-server") or absent("Redis", "apt-get install redis-server")


@pytest.fixture(scope="session")
def toolchain() -> Callable[[str], Toolchain]:
    """Return a toolchain that is complete; the test skips where it is not installed."""

    def get(name: str) -> Toolchain:
        tools = Context(Settings()).toolchain(name)
        lacking = missing(tools)
        if lacking is not None:
            absent(f"The {name} toolchain", f"make setup TOOLCHAINS={name}")
        return tools

    return get


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith("MODELIUM_") and n != "MODELIUM_TRITON_DIR"]:
        monkeypatch.delenv(name)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", settle_s=0.2, folder_quiet_s=0.5, lease_s=4)


@pytest.fixture
def context(settings: Settings) -> Context:
    return Context(settings)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL server of its own on loopback, gone with the session."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        absent("PostgreSQL", "apt-get install postgresql")
    binaries = found[-1].parent
    # Not below pytest's own folder, which only its user may enter: PostgreSQL refuses to run as root.
    folder = Path(tempfile.mkdtemp(prefix="modelium-postgres-"))
    prefix: list[str] = []
    if os.getuid() == 0:
        prefix = ["runuser", "-u", "postgres", "--"]
        shutil.chown(folder, "postgres")
    port = free_port()
    data = folder / "data"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
    subprocess.run([*prefix, binaries / "initdb", "-D", data, "-A", "trust", "-U", "modelium"], check=True, **quiet)  # type: ignore[call-overload]
    options = ["-D", data, "-p", str(port), "-k", folder, "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
    server = subprocess.Popen([*prefix, binaries / "postgres", *options], **quiet)  # type: ignore[call-overload]
    url = f"postgresql+psycopg2://modelium@127.0.0.1:{port}/postgres"
    deadline = time.monotonic() + 30
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                pass
            Database(url).engine.connect().close()
            break
        except Exception:  # noqa: BLE001  the server says in many ways that it is still starting
            assert time.monotonic() < deadline, "PostgreSQL did not start"
            time.sleep(0.1)
    yield url
    server.terminate()
    server.wait(timeout=20)
    shutil.rmtree(folder)


class DockerEngine:
    """A Docker engine of its own, with neither network nor images, all of it in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.host = f"unix://{folder}/docker.sock"
        self.start()

    def start(self) -> None:
        places = {"data-root": "data", "exec-root": "exec", "pidfile": "docker.pid"}
        argv = ["dockerd", "-H", self.host, *(f"--{name}={self.folder / place}" for name, place in places.items())]
        argv += ["--bridge=none", "--iptables=false", "--ip-forward=false", "--ip-masq=false"]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        deadline = time.monotonic() + 60
        while not self._answers():
            assert self._process.poll() is None and time.monotonic() < deadline, (self.folder / "log").read_text()[
                -2000:
            ]
            time.sleep(0.1)

    def containers(self) -> list[dict[str, Any]]:
        """Every container that there is, running or not."""
        import docker

        with docker.APIClient(self.host) as client:
            return client.containers(all=True)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(OSError):
            client.connect(self.host.removeprefix("unix://"))
            client.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return b"200 OK" in client.recv(100)
        return False

    def kill(self) -> None:
        """End the engine and its shims at once; the processes of its containers stay as they are."""
        self._process.kill()
        self._process.wait()
        for process in psutil.process_iter(["cmdline"]):
            command = process.info["cmdline"] or [""]
            if "containerd" in command[0] and any(str(self.folder) in word for word in command):
                process.kill()
        # The next engine would wait for whoever has these numbers by then.
        for name in ("docker.pid", "exec/containerd/containerd.pid"):
            (self.folder / name).unlink(missing_ok=True)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=60)
        for line in Path("/proc/self/mountinfo").read_text().splitlines():  # of when it was killed
            if (place := line.split()[4]).startswith(f"{self.folder}/"):
                subprocess.run(["umount", "--lazy", place], check=False)
        shutil.rmtree(self.folder)


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[DockerEngine]:
    """A real Docker engine, gone with the session."""
    if shutil.which("dockerd") is None:
        absent("Docker", "apt-get install docker.io")
    if os.geteuid() != 0:
        absent("Docker", "only root can start an engine of its own")
    engine = DockerEngine(Path(tempfile.mkdtemp(prefix="modelium-docker-")))
    yield engine
    engine.stop()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The endpoint of a real S3 server, gone with the session; its one user is ``test``."""
    if not all(shutil.which(program) for program in ("ceph-mon", "ceph-osd", "ceph", "radosgw")):
        absent("An S3 server", "apt-get install --no-install-recommends ceph-mon ceph-osd ceph-common radosgw")
    if find_spec("boto3") is None:
        absent("boto3", "make setup")
    folder = Path(tempfile.mkdtemp(prefix="modelium-s3-"))
    script, port = CHECKOUT / "tests" / "tools" / "ceph" / "gateway.sh", free_port()
    argv = ["bash", script, folder, str(free_port()), str(port), "test", S3_SECRET]
    server = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdin is not None and server.stdout is not None
    assert server.stdout.readline() == b"ready\n", (folder / "log").read_text()[-2000:]
    yield f"http://127.0.0.1:{port}"
    with server.stdin, server.stdout:
        pass
    server.wait(timeout=20)
    shutil.rmtree(folder)


@dataclass(frozen=True)
class Cloud:
    """A bucket of a test's own, and a client that looks behind our back."""

    endpoint_url: str
    bucket: str
    client: Any

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/store"

    def objects(self, folder: str = "") -> list[str]:
        answer = self.client.list_objects_v2(Bucket=self.bucket, Prefix=f"store/{folder}")
        return [entry["Key"].removeprefix("store/") for entry in answer.get("Contents", ())]

    def write(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=f"store/{key}", Body=content)

    def remove(self, key: str) -> None:
        self.client.delete_object(Bucket=self.bucket, Key=f"store/{key}")


@pytest.fixture(scope="session")
def s3_client(s3_server: str) -> Any:
    from boto3.session import Session

    keys = {"aws_access_key_id": "test", "aws_secret_access_key": S3_SECRET, "region_name": "us-east-1"}
    return Session().client("s3", endpoint_url=s3_server, **keys)


@pytest.fixture
def cloud(s3_server: str, s3_client: Any, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """An empty bucket; this process has its credentials as a worker has them."""
    for name in [n for n in os.environ if n.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", S3_SECRET)
    bucket = f"test-{uuid4().hex[:12]}"
    s3_client.create_bucket(Bucket=bucket)
    return Cloud(s3_server, bucket, s3_client)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A migrated, empty database of each kind."""
    if request.param == "sqlite":
        made = Database(f"sqlite:///{tmp_path / 'test.db'}")
    else:
        made = Database(request.getfixturevalue("postgres_url"))
        with made.write() as connection:
            connection.exec_driver_sql("DROP SCHEMA public CASCADE")
            connection.exec_driver_sql("CREATE SCHEMA public")
    made.migrate()
    yield made
    made.engine.dispose()
