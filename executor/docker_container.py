"""The configuration of one container: everything that the Docker engine enforces, in one document."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from executor.cgroup import start_time
from executor.docker_image import Image
from executor.inside import (
    MERGED,
    OPEN_FILES,
    ROOT,
    SYSTEM,
    cpu_seconds,
    environment,
    packages,
    shm_bytes,
    tmp_bytes,
)
from executor.sandbox import OUT, SANDBOX_UID, Command
from executor.seccomp import docker_profile
from executor.toolchain import installation
from schemas.step_io import STEP_FILE
from schemas.step_run import Limits

OWNER_LABEL = "modelium.owner"
_PROGRESS = 3
INIT_PROCESSES = 2
"""The two shells below."""

# Process 1 reaps orphans and turns a signal into 128 + n. The program's output and errors are one stream, as in a
# terminal; its progress is descriptor 3, the container's second stream. The engine closes descriptor 4 when whoever
# started the container is gone, and then all of it ends. In parentheses, because the shell's own words about a signal
# would go where the program's errors go.
_INIT = """
exec 3>&2 4<&0 2>/dev/null </dev/null
{ read -r _ <&4; kill -9 -1; } 3>&- >/dev/null &
(exec "$@" 2>&1 4<&-)
exit $?
"""

# The same, but the second process first hands one line of the container's input on to the program. It is a grandchild,
# so that the shell waits for the program alone.
_INIT_WAITING = """
exec 3>&2 4<&0 2>/dev/null </dev/null
{ { read -r line && printf '%s\\n' "$line"; exec >/dev/null; read -r _; kill -9 -1; } <&4 3>&- & } |
(exec "$@" 2>&1 4<&-)
exit $?
"""

# Folders stay open while below them; links are given away, not followed.
_GIVE = """
import os, sys
to = int(sys.argv[1]), int(sys.argv[2])
levels = [(os.open("/step/out", os.O_RDONLY | os.O_DIRECTORY), os.listdir("/step/out"))]
while levels:
    folder, names = levels[-1]
    if not names:
        os.close(levels.pop()[0])
        continue
    name = names.pop()
    try:
        os.chown(name, *to, dir_fd=folder, follow_symlinks=False)
        below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
    except OSError:
        continue
    levels.append((below, os.listdir(below)))
"""

# The engine's own list, what newer engines added to it, and what bubblewrap does not show either.
_MASKED = (
    *("/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats"),
    *("/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/firmware"),
    *("/sys/block", "/sys/bus", "/sys/class", "/sys/dev", "/sys/devices/virtual", "/sys/fs", "/sys/kernel"),
    *("/sys/module", "/sys/power", "/dev/mqueue", "/etc/resolv.conf"),
)
_READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


@dataclass(frozen=True)
class Engine:
    """What was found out about the engine, and what it is to use.

    ``maps_users`` is whether a uid inside is another one outside; ``rootless`` that 0 inside is who runs the engine.
    """

    image: Image
    runtime: str
    cpus: int
    api: str
    rootless: bool = False
    maps_users: bool = False
    gpus: tuple[str, ...] = ()
    """Ids of the GPUs that steps may get which need one, as NVIDIA's runtime has them; none: all."""


def configuration(engine: Engine, command: Command) -> dict[str, Any]:
    """Return the engine's document for a container that runs ``command``."""
    limits = command.limits
    variables = environment(command, _PROGRESS)
    # A name without "=" takes the image's own variable away.
    strangers = [name for name in engine.image.variables if name not in variables]
    return {
        "Image": engine.image.id,
        "Entrypoint": ["/bin/sh", "-c", _INIT, "sh"],
        "Cmd": list(command.argv),
        "Env": [*(f"{name}={value}" for name, value in variables.items()), *strangers],
        "User": f"{SANDBOX_UID}:{SANDBOX_UID}",
        "WorkingDir": str(ROOT),
        "Hostname": "sandbox",
        "Labels": {OWNER_LABEL: owner()},
        "Healthcheck": {"Test": ["NONE"]},
        "NetworkDisabled": True,
        **dict.fromkeys(("AttachStdin", "AttachStdout", "AttachStderr", "OpenStdin", "StdinOnce"), True),
        "HostConfig": {
            "NetworkMode": "none",
            "IpcMode": "private",
            "CgroupnsMode": "private",
            "ReadonlyRootfs": True,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges", f"seccomp={docker_profile(gpu=bool(command.gpus))}"],
            "MaskedPaths": list(_MASKED),
            "ReadonlyPaths": list(_READ_ONLY),
            "Memory": limits.memory_bytes,
            "MemorySwap": limits.memory_bytes,
            "NanoCpus": int(min(limits.cpus, engine.cpus) * 1e9),
            "PidsLimit": limits.processes + INIT_PROCESSES,
            "Ulimits": list(_ulimits(limits)),
            "ShmSize": shm_bytes(limits),
            "Tmpfs": {"/tmp": f"rw,exec,nosuid,nodev,mode=1777,size={tmp_bytes(limits)}"},
            "Mounts": [*_installed(engine.image, command), *_workspace(command)],
            "LogConfig": {"Type": "none"},
            "RestartPolicy": {"Name": "no"},
            **({"Runtime": engine.runtime} if engine.runtime else {}),
            **({"DeviceRequests": [_devices(engine, command.gpus)]} if command.gpus else {}),
        },
    }


def giving_back(engine: Engine, command: Command) -> dict[str, Any]:
    """Return the document for a container that gives all in ``out/`` to this process's user, and runs nothing else."""
    user, group = (0, 0) if engine.rootless else (os.geteuid(), os.getegid())
    argv = (str(command.interpreter), "-I", "-S", "-c", _GIVE, str(user), str(group))
    document = configuration(engine, replace(command, argv=argv, inputs={}, gpus=0))
    document["User"] = "0:0"
    document["HostConfig"]["CapAdd"] = ["CHOWN", "DAC_READ_SEARCH"]
    return document


def waiting(engine: Engine, command: Command, folder: Path) -> dict[str, Any]:
    """Return the document for a container that waits to be told what to run, in all else like that of ``command``.

    It shows ``folder`` as its workspace, where inputs and ``step.json`` appear later; ``out/`` in it is there.
    """
    argv = (str(command.interpreter), "-P", "-s", "-u", "-m", "executor.waiting_child", str(command.warm))
    document = configuration(engine, replace(command, argv=argv, inputs={}))
    document["Entrypoint"][2] = _INIT_WAITING
    shown = [_bind(folder, ROOT), _bind(folder / OUT, ROOT / OUT, writable=True)]
    document["HostConfig"]["Mounts"] = [*_installed(engine.image, command), *shown]
    return document


def owner() -> str:
    """Return what names this process for as long as the machine is up, seen from its own pid namespace."""
    return f"{os.getpid()}-{start_time(os.getpid())}-{pid_namespace()}"


def pid_namespace() -> str:
    """Return what names this process's pid namespace, on this machine and since its start."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{Path('/proc/self/ns/pid').stat().st_ino}-{boot}"


def _devices(engine: Engine, count: int) -> dict[str, Any]:
    which: dict[str, Any] = {"DeviceIDs": list(engine.gpus[:count])} if engine.gpus else {"Count": count}
    # To compute and to be asked (nvidia-smi); not to draw, nor to encode films.
    return {"Driver": "nvidia", **which, "Capabilities": [["gpu", "compute", "utility"]]}


def _ulimits(limits: Limits) -> Iterator[dict[str, Any]]:
    bounds = {
        "core": 0,
        "nofile": OPEN_FILES,
        "fsize": limits.workspace_bytes,
        "cpu": cpu_seconds(limits),
        "msgqueue": 0,
        # Counted for the uid, which all sandboxes of this machine share: the container's own bound comes first.
        "nproc": limits.processes * 16,
    }
    for name, value in bounds.items():
        yield {"Name": name, "Soft": value, "Hard": value}


def _installed(image: Image, command: Command) -> Iterator[dict[str, Any]]:
    interpreters = [python for python in (command.interpreter, *command.beside) if python not in image.interpreters]
    if image.host_usr:
        yield _bind(Path("/usr"), Path("/usr"))
        for place in (*(Path("/", name) for name in MERGED), *SYSTEM[:2]):
            if place.exists() and not place.is_symlink():
                yield _bind(place, place)
    shown = itertools.chain.from_iterable(installation(python).prefixes for python in interpreters)
    for prefix in dict.fromkeys(shown):
        if not prefix.is_relative_to("/usr"):
            yield _bind(prefix, prefix)
    for package, place in packages():
        yield _bind(package, place)


def _workspace(command: Command) -> Iterator[dict[str, Any]]:
    if (step := command.workspace / STEP_FILE).exists():
        yield _bind(step, ROOT / STEP_FILE)
    for name, source in command.inputs.items():
        yield _bind(source, ROOT / "in" / name)
    yield _bind(command.workspace / OUT, ROOT / OUT, writable=True)


def _bind(source: Path, place: Path, writable: bool = False) -> dict[str, Any]:
    # Not recursive: what is mounted below a source would stay writable under engines before 25.
    options = {"Propagation": "rprivate", "NonRecursive": True}
    return {
        "Type": "bind",
        "Source": str(source.absolute()),
        "Target": str(place),
        "ReadOnly": not writable,
        "BindOptions": options,
    }
