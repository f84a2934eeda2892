"""Finds out by running it what a step's pod really enforces: the network and the node are not what a manifest says."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from executor.sandbox import SANDBOX_UID, Command, Sandbox
from executor.workspace import Workspace
from schemas.errors import SandboxUnavailable
from schemas.step_run import Isolation, Limits

_LIMITS = Limits(memory_bytes=512 << 20, cpus=1, processes=16, timeout_s=120, workspace_bytes=1 << 20)
_TIGHT = _LIMITS.model_copy(update={"memory_bytes": 64 << 20})
_FORKS = 400
"""More than RLIMIT_NPROC lets a step of 16 processes have."""

# Tries what must fail. Nothing here harms a host on which it succeeds.
_LOOK = f"""
import json, os, socket, sys
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
def writable(path):
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
    except OSError:
        return False
    os.unlink(path)
    return True
def reachable(host, port):
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
    except OSError:
        return False
    return True
def bound(*files):
    for version, path, unbound in files:
        try:
            value = open(path).read().split()[0]
        except OSError:
            continue
        return None if value in unbound else version
    return None
seen = {{
    "own_user": os.getuid() == os.getgid() == {SANDBOX_UID} and int(status["CapEff"], 16) == 0
    and status["NoNewPrivs"].strip() == "1",
    "no_network": not any(reachable(*address.rsplit(":", 1)) for address in sys.argv[1:]),
    "read_only_root": not any(map(writable, ("/.probe", "/usr/.probe", "/etc/.probe", "/dev/.probe", "/step/.probe"))),
    "own_pids": {{n for n in os.listdir("/proc") if n.isdigit()}} == {{"1", str(os.getpid())}},
    "seccomp": status["Seccomp"].strip() == "2",
    "token": os.path.exists("/var/run/secrets/kubernetes.io"),
    "cpu": bound(("cgroup-v2", "/sys/fs/cgroup/cpu.max", ("max",)),
                 ("cgroup-v1", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us", ("-1",))),
    "group": "cgroup-v2" if os.path.exists("/sys/fs/cgroup/cgroup.controllers") else "cgroup-v1",
}}
children = 0
try:
    while children < {_FORKS}:
        if os.fork() == 0:
            import signal
            signal.pause()
        children += 1
except OSError:
    pass
seen["processes"] = children < {_FORKS}
print(json.dumps(seen), flush=True)
os._exit(0)
"""
_HOG = "x = b'x' * (256 << 20)"


def probe(sandbox: Sandbox, interpreter: Path, workspaces: Path, server: str) -> Isolation:
    """Run the probes and return what held; ``server`` is a URL that this process reaches and a step must not.

    Raises SandboxUnavailable when the pod does not start.
    """
    seen = _look(sandbox, interpreter, workspaces, _addresses(server))
    notes = [
        f"No network: a connection to the API server ({urlsplit(server).netloc}) was tried and failed.",
        "Processes: 16 times the limit for a user on one node; the kubelet's podPidsLimit, which can't be seen from "
        "inside, bounds one pod.",
        "The size of out/ is watched, not bounded; usage is not known.",
    ]
    memory = seen["group"] if _memory_is_bounded(sandbox, interpreter, workspaces) else "none"
    if seen["token"]:
        raise SandboxUnavailable(
            "Steps are given a service account's token.",
            hint="Something in the cluster adds it to pods that decline it.",
        )
    return Isolation(
        backend=sandbox.name,
        own_user=seen["own_user"],
        no_network=seen["no_network"],
        read_only_root=seen["read_only_root"],
        own_pids=seen["own_pids"],
        seccomp=seen["seccomp"],
        memory=memory,
        processes="rlimit" if seen["processes"] else "none",
        cpu=seen["cpu"] or "none",
        notes=tuple(notes),
    )


def _addresses(server: str) -> list[str]:
    """Return the numeric addresses of ``server``: inside, names mean nothing whatever the network lets through."""
    parts = urlsplit(server)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise SandboxUnavailable(
            f"The name of the API server, {parts.hostname}, is not known here ({error}).", hint="Is there a cluster?"
        ) from error
    return sorted({f"{address[0]}:{port}" for *_, address in found})


def _look(sandbox: Sandbox, interpreter: Path, workspaces: Path, addresses: list[str]) -> dict[str, Any]:
    folder = Workspace(workspaces)
    try:
        argv = (str(interpreter), "-I", "-S", "-c", _LOOK, *addresses)
        ending = sandbox.execute(Command(argv, folder.path, interpreter, _LIMITS))
    finally:
        folder.remove()
    try:
        seen = json.loads(ending.log.strip().splitlines()[-1])
    except (ValueError, IndexError):
        told = ending.log.strip()[-300:] or ending.error or f"status {ending.exit_code}"
        raise SandboxUnavailable(
            f"The pod of a step does not work here: {told}.",
            hint=f"The image needs /usr/bin/prlimit, /bin/sh and the interpreter {interpreter}, as this worker's has.",
        ) from None
    assert isinstance(seen, dict)
    return seen


def _memory_is_bounded(sandbox: Sandbox, interpreter: Path, workspaces: Path) -> bool:
    folder = Workspace(workspaces)
    try:
        argv = (str(interpreter), "-I", "-S", "-c", _HOG)
        ending = sandbox.execute(Command(argv, folder.path, interpreter, _TIGHT))
    finally:
        folder.remove()
    return ending.error is not None
