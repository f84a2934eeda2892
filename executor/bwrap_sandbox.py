"""The bubblewrap sandbox: namespaces, a minimal read-only root, a seccomp allowlist, a cgroup where there is one."""

from __future__ import annotations

import functools
import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from executor.cgroup import Cgroup
from executor.inside import (
    MERGED,
    OPEN_FILES,
    PASSWD,
    ROOT,
    SYSTEM,
    cpu_seconds,
    environment,
    packages,
    shm_bytes,
    tmp_bytes,
)
from executor.probing import LIMITS, Bounds, probe
from executor.sandbox import NO_OBSERVERS, OUT, SANDBOX_UID, Command, Ending, Observers
from executor.seccomp import program
from executor.supervise import Pipes, supervise
from executor.toolchain import installation
from schemas.step_io import STEP_FILE
from schemas.step_run import Isolation, Limits

# Joins the groups named by the first arguments, then becomes the rest. A shell does it because code between fork
# and exec of a threaded Python process is not safe, and the group must be joined before the first byte runs.
_JOIN = 'n=$1; shift; while [ $n -gt 0 ]; do echo $$ > "$1" || exit 125; shift; n=$((n - 1)); done; exec "$@"'

_ADDRESS_SLACK_BYTES = 8 << 30
"""Torch and its threads reserve far more addresses than they use."""


class BwrapSandbox:
    """Runs programs under bubblewrap; as root with a real uid of their own, as a user in a user namespace."""

    name = "bubblewrap"

    def __init__(self, executable: str) -> None:
        self._executable = executable
        self._as_root = os.geteuid() == 0 and _is_mapped("uid") and _is_mapped("gid")

    def root(self, workspace: Path) -> Path:
        """Return where programs inside see the workspace."""
        return ROOT

    def place(self, name: str, source: Path) -> str:
        """Return the path below the workspace that the input is mounted at."""
        return f"in/{name}"

    def carried(self, toolchain: str) -> None:
        """Return None: programs use the host's toolchains."""

    def isolation(self, limits: Limits) -> Isolation:
        """Return what is really enforced; probed once per process, whatever the limits."""
        return self._probed

    @functools.cached_property
    def _probed(self) -> Isolation:
        group = Cgroup.create(LIMITS)
        try:
            bounds = Bounds(group.label("memory"), group.label("pids"), group.label("cpu"))
        finally:
            group.remove()
        return probe(self, Path(sys.executable), bounds)

    def execute(self, command: Command, observers: Observers = NO_OBSERVERS) -> Ending:
        """Run ``command`` to its end; see the protocol."""
        out = command.workspace / OUT
        out.mkdir(exist_ok=True)
        if self._as_root:
            os.chown(out, SANDBOX_UID, SANDBOX_UID)
        cgroup = Cgroup.create(command.limits)
        pipes = Pipes()
        try:
            argv = [
                *("/bin/sh", "-c", _JOIN, "sh", str(len(cgroup.entrances)), *map(str, cgroup.entrances)),
                *(self._executable, *self._namespaces(), *self._mounts(command), *_environment(command, pipes)),
                *("--seccomp", str(pipes.data(program())), "--info-fd", str(pipes.info[1])),
                *("--ro-bind-data", str(pipes.data(PASSWD)), "/etc/passwd", "--remount-ro", "/"),
                *("--chdir", str(ROOT), "--", *self._rlimits(command.limits, cgroup), *self._become(), *command.argv),
            ]
            return supervise(argv, pipes, cgroup=cgroup, out=out, limits=command.limits, observers=observers)
        finally:
            pipes.close()
            cgroup.remove()

    def _namespaces(self) -> Iterator[str]:
        yield from ("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try")
        yield from ("--die-with-parent", "--new-session", "--clearenv", "--hostname", "sandbox", "--cap-drop", "ALL")
        if self._as_root:
            # Root needs no user namespace, and without one its bind mounts reach folders of mode 0700. The program
            # gets a uid of its own from setpriv, which drops these capabilities with everything else.
            for capability in ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP"):
                yield from ("--cap-add", capability)
        else:
            yield from ("--unshare-user", "--uid", str(SANDBOX_UID), "--gid", str(SANDBOX_UID))

    def _become(self) -> tuple[str, ...]:
        if not self._as_root:
            return ()
        uid = str(SANDBOX_UID)
        return (
            *("/usr/bin/setpriv", "--reuid", uid, "--regid", uid, "--clear-groups"),
            *("--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", "--"),
        )

    def _mounts(self, command: Command) -> Iterator[str]:
        limits = command.limits
        yield from ("--perms", "1777", "--size", str(tmp_bytes(limits)), "--tmpfs", "/tmp")
        yield from ("--ro-bind", "/usr", "/usr")
        for name in MERGED:
            place = Path("/", name)
            if place.is_symlink():
                yield from ("--symlink", str(place.readlink()), str(place))
            elif place.is_dir():
                yield from ("--ro-bind", str(place), str(place))
        yield from ("--proc", "/proc", "--dev", "/dev")
        # Without root, process 1 has the uid of the model and none of its limits: whoever writes into its memory
        # becomes it.
        yield from ("--perms", "0555", "--size", "4096", "--tmpfs", "/proc/1", "--remount-ro", "/proc/1")
        yield from ("--perms", "1777", "--size", str(shm_bytes(limits)), "--tmpfs", "/dev/shm")
        yield from ("--remount-ro", "/dev")
        binds = [("--ro-bind-try", path, path) for path in SYSTEM]
        shown = (installation(python).prefixes for python in (command.interpreter, *command.beside))
        for prefix in dict.fromkeys(itertools.chain.from_iterable(shown)):
            if not prefix.is_relative_to("/usr"):
                binds.append(("--ro-bind", prefix, prefix))
        binds += [("--ro-bind", package, place) for package, place in packages()]
        binds.append(("--ro-bind-try", command.workspace / STEP_FILE, ROOT / STEP_FILE))
        binds += [("--ro-bind", source, ROOT / "in" / name) for name, source in command.inputs.items()]
        binds.append(("--bind", command.workspace / OUT, ROOT / OUT))
        # bwrap makes the folders above a mount for its own user alone: make them first, for everyone.
        above = {parent for *_, place in binds for parent in place.parents} - {Path("/"), Path("/tmp")}
        for folder in sorted(above):
            yield from ("--perms", "0755", "--dir", str(folder))
        for flag, source, place in binds:
            yield from (flag, str(source), str(place))

    def _rlimits(self, limits: Limits, cgroup: Cgroup) -> Iterator[str]:
        # Root's sandboxes share one uid, and with it the count of RLIMIT_NPROC: where a group bounds processes, this
        # one is only a second fence. CPU seconds end what might outlive a killed owner.
        processes = limits.processes * 16 if self._as_root and cgroup.label("pids") else limits.processes
        yield from ("/usr/bin/prlimit", "--core=0", f"--nofile={OPEN_FILES}", f"--fsize={limits.workspace_bytes}")
        yield from (f"--nproc={processes}", f"--cpu={cpu_seconds(limits)}")
        if not cgroup.label("memory"):
            yield f"--as={limits.memory_bytes + _ADDRESS_SLACK_BYTES}"
        yield "--"


def _is_mapped(kind: str) -> bool:
    """Whether this user namespace has the sandbox's own user; a root made by ``unshare`` is alone in its."""
    lines = Path(f"/proc/self/{kind}_map").read_text().splitlines()
    ranges = [tuple(map(int, line.split())) for line in lines]
    return any(first <= SANDBOX_UID < first + count for first, _, count in ranges)


def _environment(command: Command, pipes: Pipes) -> Iterator[str]:
    for name, value in environment(command, pipes.progress[1]).items():
        yield from ("--setenv", name, value)
