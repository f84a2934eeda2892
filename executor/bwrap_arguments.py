"""What bubblewrap is told: namespaces, capabilities, files. Cold sandboxes and warm parents have it in common."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from executor.cgroup import Cgroup
from executor.gpus import Shown
from executor.inside import MERGED, OPEN_FILES, ROOT, SYSTEM, cpu_seconds, packages
from executor.probing import LIMITS, Bounds
from executor.sandbox import OUT, SANDBOX_UID, Command
from executor.toolchain import installation
from schemas.step_io import STEP_FILE
from schemas.step_run import Limits

_ADDRESS_SLACK_BYTES = 8 << 30
"""Torch and its threads reserve far more addresses than they use."""

Bind = tuple[str, Path, Path]


@functools.cache
def as_root() -> bool:
    """Whether this user is a root that has the sandbox's own user: not one that ``unshare`` made, alone in its own."""
    return os.geteuid() == 0 and _is_mapped("uid") and _is_mapped("gid")


def namespaces(*capabilities: str, uid: int = SANDBOX_UID) -> Iterator[str]:
    """Yield what unshares everything; ``capabilities`` are kept, ``uid`` is the user inside where this is no root."""
    yield from ("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try")
    yield from ("--die-with-parent", "--new-session", "--clearenv", "--hostname", "sandbox", "--cap-drop", "ALL")
    for capability in capabilities:
        yield from ("--cap-add", capability)
    # Root needs no user namespace, and without one its bind mounts reach folders of mode 0700.
    if not as_root():
        yield from ("--unshare-user", "--uid", str(uid), "--gid", str(uid))


def system(tmp_bytes: int, shm_bytes: int, devices: Iterable[Shown] = ()) -> Iterator[str]:
    """Yield the mounts that show nothing of a step: the system's own and empty ones, and ``devices``."""
    yield from ("--perms", "1777", "--size", str(tmp_bytes), "--tmpfs", "/tmp")
    yield from ("--ro-bind", "/usr", "/usr")
    for name in MERGED:
        place = Path("/", name)
        if place.is_symlink():
            yield from ("--symlink", str(place.readlink()), str(place))
        elif place.is_dir():
            yield from ("--ro-bind", str(place), str(place))
    yield from ("--proc", "/proc", "--dev", "/dev")
    yield from ("--perms", "1777", "--size", str(shm_bytes), "--tmpfs", "/dev/shm")
    for source, place in devices:
        yield from ("--dev-bind", str(source), str(place))
    yield from ("--remount-ro", "/dev")


def hidden_init() -> Iterator[str]:
    """Yield the mount that covers process 1.

    Without root it has the uid of the model and none of its limits: whoever writes into its memory becomes it.
    """
    yield from ("--perms", "0555", "--size", "4096", "--tmpfs", "/proc/1", "--remount-ro", "/proc/1")


def installed(interpreters: Iterable[Path]) -> list[Bind]:
    """Return the binds of these interpreters' installations and of our own packages."""
    binds: list[Bind] = [("--ro-bind-try", path, path) for path in SYSTEM]
    shown = (installation(python).prefixes for python in interpreters)
    for prefix in dict.fromkeys(itertools.chain.from_iterable(shown)):
        if not prefix.is_relative_to("/usr"):
            binds.append(("--ro-bind", prefix, prefix))
    return binds + [("--ro-bind", package, place) for package, place in packages()]


def workspace(command: Command) -> list[Bind]:
    """Return the binds that are this step's alone."""
    binds: list[Bind] = [("--ro-bind-try", command.workspace / STEP_FILE, ROOT / STEP_FILE)]
    binds += [("--ro-bind", source, ROOT / "in" / name) for name, source in command.inputs.items()]
    return [*binds, ("--bind", command.workspace / OUT, ROOT / OUT)]


def bound(binds: Sequence[Bind]) -> Iterator[str]:
    """Yield the binds, after the folders above them: bwrap would make those for its own user alone."""
    above = {parent for *_, place in binds for parent in place.parents} - {Path("/"), Path("/tmp")}
    for folder in sorted(above):
        yield from ("--perms", "0755", "--dir", str(folder))
    for flag, source, place in binds:
        yield from (flag, str(source), str(place))


def group_bounds() -> Bounds:
    """Return what control groups are said to bound here."""
    group = Cgroup.create(LIMITS)
    try:
        return Bounds(group.label("memory"), group.label("pids"), group.label("cpu"))
    finally:
        group.remove()


def resource_limits(limits: Limits, cgroup: Cgroup, gpus: int = 0) -> dict[str, int]:
    """Return the limits of each process, by the names that ``prlimit`` has for them."""
    # Root's sandboxes share one uid, and with it the count of RLIMIT_NPROC: where a group bounds processes, this
    # one is only a second fence.
    found = {
        "core": 0,
        "nofile": OPEN_FILES,
        "fsize": limits.workspace_bytes,
        "nproc": limits.processes * 16 if as_root() and cgroup.label("pids") else limits.processes,
        "cpu": cpu_seconds(limits),
    }
    # CUDA reserves addresses for all memory of the machine and its GPUs: there what is watched is all there is.
    return found if cgroup.label("memory") or gpus else found | {"as": limits.memory_bytes + _ADDRESS_SLACK_BYTES}


def set_variables(variables: dict[str, str]) -> Iterator[str]:
    """Yield what sets these variables."""
    for name, value in variables.items():
        yield from ("--setenv", name, value)


def _is_mapped(kind: str) -> bool:
    lines = Path(f"/proc/self/{kind}_map").read_text().splitlines()
    ranges = [tuple(map(int, line.split())) for line in lines]
    return any(first <= SANDBOX_UID < first + count for first, _, count in ranges)
