"""A real Triton server for the tests marked ``triton``.

It is set up once with ``tests/tools/triton/setup.sh DIR``; DIR is MODELIUM_TRITON_DIR, else .cache/triton in the
checkout. Absent, the tests are skipped with the reason on a person's machine and fail where CI=true.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
TOOLS = CHECKOUT / "tests" / "tools" / "triton"


@dataclass
class TritonServer:
    """A running server: its urls, its log, and the interpreter that has the HTTP client."""

    http_port: int
    grpc_port: int
    log: Path
    client_python: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    def status(self, path: str) -> int:
        try:
            with urllib.request.urlopen(f"{self.url}/{path}", timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        except OSError:
            return 0

    def is_ready(self, name: str, version: int) -> bool:
        return self.status(f"v2/models/{name}/versions/{version}/ready") == 200

    def wait_until(self, condition: Callable[[], bool], timeout_s: float = 30) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, self.log.read_text(errors="replace")[-4000:]
            time.sleep(0.05)


@pytest.fixture(scope="session")
def triton_folder() -> Path:
    folder = Path(os.environ.get("MODELIUM_TRITON_DIR") or CHECKOUT / ".cache" / "triton")
    if not (folder / "tsrv" / "pytriton" / "tritonserver" / "bin" / "tritonserver").is_file():
        reason = f"no Triton in {folder}: run tests/tools/triton/setup.sh {folder}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    # The stand-in may have changed since the server was set up.
    backend = folder / "tsrv" / "pytriton" / "tritonserver" / "backends" / "onnxruntime" / "model.py"
    source = TOOLS / "onnxruntime_model.py"
    if backend.read_bytes() != source.read_bytes():
        shutil.copyfile(source, backend)
    return folder


@pytest.fixture
def start_triton(triton_folder: Path, tmp_path: Path) -> Iterator[Callable[..., TritonServer]]:
    """Give ``start(repository, *flags)``; every server ends with the test."""
    with ExitStack() as stack:

        def start(repository: Path, *flags: str) -> TritonServer:
            ports = _free_ports(3)
            log = tmp_path / f"triton-{ports[0]}.log"
            environment = {
                **os.environ,
                "HTTP_PORT": str(ports[0]),
                "GRPC_PORT": str(ports[1]),
                "METRICS_PORT": str(ports[2]),
                "ORT_DISABLE_TELEMETRY": "1",
            }
            process = subprocess.Popen(
                [TOOLS / "start.sh", triton_folder, repository, log, *flags], env=environment, start_new_session=True
            )
            stack.callback(_stop, process)
            server = TritonServer(ports[0], ports[1], log, triton_folder / "venv" / "bin" / "python")
            server.wait_until(lambda: process.poll() is not None or server.status("v2/health/live") == 200, 60)
            assert process.poll() is None, log.read_text(errors="replace")[-4000:]
            return server

        yield start


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


def _free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [int(item.getsockname()[1]) for item in sockets]
