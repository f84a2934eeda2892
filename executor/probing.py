"""Finds out by running it what a sandbox really enforces."""

from __future__ import annotations

import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from executor.sandbox import SANDBOX_UID, Command, Ending
from schemas.errors import LimitExceeded, SandboxUnavailable
from schemas.step_run import Isolation, Limits

# As root the kernel's own limit is 16 times that, of all that this machine runs as the sandboxes' user: not too few.
LIMITS = Limits(memory_bytes=512 << 20, processes=16, timeout_s=30, workspace_bytes=1 << 20)
_TIGHT = LIMITS.model_copy(update={"memory_bytes": 64 << 20})
_REFUSED = 77
"""Status of the probe when the kernel made no more processes for it."""

# Tries what must fail. Nothing here harms a host on which it succeeds.
_LOOK = f"""
import ctypes, json, os
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
def rights(pid):
    kept = ("Uid", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp")
    told = dict(line.split(":", 1) for line in open(f"/proc/{{pid}}/status"))
    return [told.get(name) for name in kept], open(f"/proc/{{pid}}/limits").read()
def writable(path):
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
    except OSError:
        return False
    os.unlink(path)
    return True
libc = ctypes.CDLL(None, use_errno=True)
others = [n for n in os.listdir("/proc") if n.isdigit() and int(n) != os.getpid()]
seen = {{
    "own_user": os.getuid() == {SANDBOX_UID} and int(status["CapEff"], 16) == 0,
    "no_network": [line.split(":")[0].strip() for line in open("/proc/net/dev").readlines()[2:]] == ["lo"],
    "read_only_root": not any(map(writable, ("/.probe", "/usr/.probe", "/etc/.probe", "/dev/.probe", "/step/.probe"))),
    # Beside itself it sees what starts it: hidden, or without any right that it lacks.
    "own_pids": len(others) < 3 and all(not os.listdir(f"/proc/{{n}}") or rights(n) == rights("self") for n in others),
    "seccomp": status["Seccomp"].strip() == "2" and libc.ptrace(0, 0, 0, 0) == -1,
    "landlock": max(0, libc.syscall(444, None, 0, 1)),
}}
print(json.dumps(seen), flush=True)
children = 0
try:
    while children < {LIMITS.processes * 2}:
        if os.fork() == 0:
            import signal
            signal.pause()
        children += 1
except OSError:
    os._exit({_REFUSED})
import time
time.sleep(1)  # whoever counts has noticed by then
os._exit(0)
"""
_HOG = "x = b'x' * (256 << 20)"


@dataclass(frozen=True)
class Bounds:
    """What is said to bound a sandbox: cgroup-v1, cgroup-v2, or None where no group does."""

    memory: str | None
    processes: str | None
    cpu: str | None
    notes: tuple[str, ...] = ()


class Runs(Protocol):
    """What a probe needs of a sandbox."""

    name: str

    def execute(self, command: Command) -> Ending:
        """Run ``command`` to its end."""


def probe(sandbox: Runs, interpreter: Path, bounds: Bounds) -> Isolation:
    """Run the probes and return what held. Raises SandboxUnavailable when the sandbox does not start."""
    memory, notes = bounds.memory, list(bounds.notes)
    with ThreadPoolExecutor(1, thread_name_prefix="probe") as beside:
        hog = beside.submit(_memory_is_bounded, sandbox, interpreter) if memory else None
        seen = _look(sandbox, interpreter)
    if hog is not None and not hog.result():
        memory = None
        notes.append("The memory cgroup did not stop a program that took more than its limit.")
    if not memory:
        notes.append("No memory cgroup: each process is bounded, and their total is watched every 50 ms.")
    processes = (bounds.processes or "rlimit") if seen["processes"] == "refused" else seen["processes"]
    if processes == "watched":
        notes.append("The kernel bounds no processes for this user: they are counted every 50 ms.")
    return Isolation(
        backend=sandbox.name,
        own_user=seen["own_user"],
        no_network=seen["no_network"],
        read_only_root=seen["read_only_root"],
        own_pids=seen["own_pids"],
        seccomp=seen["seccomp"],
        landlock=seen["landlock"],
        memory=memory or "rlimit",
        processes=processes,
        cpu=bounds.cpu or "rlimit",
        notes=tuple(notes),
    )


def _look(sandbox: Runs, interpreter: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="modelium-probe-") as folder:
        argv = (str(interpreter), "-I", "-S", "-c", _LOOK)
        try:
            ending = sandbox.execute(Command(argv, Path(folder), interpreter, LIMITS))
        except OSError as error:
            raise SandboxUnavailable(
                f"The {sandbox.name} sandbox can't be set up here: {error.strerror} ({error.filename}).",
                hint="In a container, run as an ordinary user, or with the capabilities CHOWN, SETUID and SETGID.",
            ) from None
    try:
        seen = json.loads(ending.log.strip().splitlines()[-1])
    except (ValueError, IndexError):
        raise SandboxUnavailable(
            f"The {sandbox.name} sandbox does not start here: {ending.log.strip()[-300:] or ending.error}.",
            hint="User namespaces must be allowed (sysctl kernel.unprivileged_userns_clone=1, or "
            "kernel.apparmor_restrict_unprivileged_userns=0), or run as root; in a container, run it with the "
            "capability SYS_ADMIN and without its own seccomp profile.",
        ) from None
    assert isinstance(seen, dict)
    watched = "watched" if isinstance(ending.error, LimitExceeded) else "none"
    return {**seen, "processes": "refused" if ending.exit_code == _REFUSED else watched}


def _memory_is_bounded(sandbox: Runs, interpreter: Path) -> bool:
    with tempfile.TemporaryDirectory(prefix="modelium-probe-") as folder:
        argv = (str(interpreter), "-I", "-S", "-c", _HOG)
        ending = sandbox.execute(Command(argv, Path(folder), interpreter, _TIGHT))
    return ending.error is not None
