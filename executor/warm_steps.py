"""Runs steps in children of warm parents, where that was seen to hold as well as a process of their own does."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from executor import bwrap_arguments as arguments
from executor.bwrap_arguments import as_root, group_bounds
from executor.detached_mounts import detach
from executor.inside import PASSWD, ROOT, environment, shm_bytes, tmp_bytes
from executor.pipes import Pipes
from executor.probing import probe
from executor.sandbox import NO_OBSERVERS, OUT, SANDBOX_UID, Command, Ending, Observers
from executor.seccomp import program
from executor.supervise import follow
from executor.warm_bounds import WarmBounds, WarmKey
from executor.warm_failed import WarmFailed
from executor.warm_parent import WarmParent
from executor.warm_parents import WarmParents
from executor.warm_protocol import PROGRESS_DESCRIPTOR
from executor.warm_seat import WarmSeat
from executor.workspace import remove_tree
from schemas.errors import Cancelled, SandboxUnavailable
from schemas.step_run import Isolation, Limits

log = logging.getLogger(__name__)
_PARENT_TMP_BYTES = 64 << 20
_MUST_HOLD = ("own_user", "no_network", "read_only_root", "own_pids", "seccomp", "memory", "processes", "cpu")


class WarmSteps:
    """The warm half of the bubblewrap sandbox. Calls may overlap."""

    name = "bubblewrap, warm"

    def __init__(self, executable: str, bounds: WarmBounds) -> None:
        self._executable = executable
        self.parents = WarmParents(bounds, self._start)
        self._probing = threading.Lock()
        self._found: Isolation | str | None = None
        self._complained: set[str] = set()

    def execute(self, command: Command, observers: Observers, *, began: float, cold: Isolation) -> Ending | None:
        """Run ``command`` in a child that holds what ``cold`` does, or return None: then start it cold."""
        try:
            if not _shows_all(command) or (command.hurried and not self.parents.is_ready(_key(command))):
                return None
            isolation = self._holds(command, cold)
            ending = self._run(command, observers, began)
        except WarmFailed as error:
            if (why := str(error)) not in self._complained:
                self._complained.add(why)
                log.warning("a step of %s starts cold: %s", command.warm, why)
            return None
        return replace(ending, warm=isolation)

    def prepare(self, like: Command, cold: Callable[[], Isolation]) -> None:
        """Start the parent of steps like this, and find out what its children enforce before a step needs to."""
        self.parents.prepare(_key(like))
        if self._found is None:
            with contextlib.suppress(WarmFailed):  # the step that needs it tells why
                self._holds(like, cold())

    def attempt(
        self, toolchain: str, interpreter: Path, environment: Mapping[str, str], cold: Isolation
    ) -> float | str:
        """Return the seconds that an empty step took in a child of a parent that was there, or why none did."""
        with tempfile.TemporaryDirectory(prefix="modelium-probe-") as folder:
            (Path(folder) / OUT).mkdir()
            argv = (str(interpreter), "-c", "pass")
            command = Command(argv, Path(folder), interpreter, Limits(), environment=environment, warm=toolchain)
            try:
                self._holds(command, cold)
                self._run(command, NO_OBSERVERS, time.monotonic())
                ending = self._run(command, NO_OBSERVERS, time.monotonic())
            except WarmFailed as error:
                return str(error)
        if ending.exit_code == 0 and ending.error is None:
            return ending.wall_s
        return ending.log.strip()[-300:] or str(ending.error)

    def _holds(self, command: Command, cold: Isolation) -> Isolation:
        """Return what children of warm parents enforce, found out by running it once in this process."""
        with self._probing:
            if self._found is None:  # it stays so when this parent cannot be had: another toolchain's may
                try:
                    found = probe(_Probed(self, command), command.interpreter, group_bounds())
                except SandboxUnavailable as error:
                    self._found = str(error.args[0])
                else:
                    lacking = [name for name in _MUST_HOLD if getattr(found, name) != getattr(cold, name)]
                    self._found = found.model_copy(update={"backend": cold.backend})
                    if lacking:
                        self._found = f"a warm start does not enforce here: {', '.join(lacking)}"
            if isinstance(self._found, str):
                raise WarmFailed(self._found)
            return self._found

    def _run(self, command: Command, observers: Observers, began: float) -> Ending:
        out = command.workspace / OUT
        try:
            with self.parents.seated(_key(command), observers.should_stop, timed=command.timed) as (
                seat,
                inherited_bytes,
            ):
                _begin(seat, command, inherited_bytes)
                ending = follow(
                    seat,
                    seat.pipes,
                    began=began,
                    cgroup=seat.cgroup,
                    out=out,
                    limits=command.limits,
                    observers=observers,
                )
                if seat.vanished and ending.error is None:
                    _empty(out)
                    raise WarmFailed("its warm parent died under it")
                return ending
        except Cancelled as error:
            return Ending(-1, error, "", time.monotonic() - began, None, None)

    def _start(self, key: WarmKey) -> WarmParent:
        def argv(control: int, system_calls: int, pipes: Pipes) -> list[str]:
            nothing = Command((), Path("/"), key.interpreter, Limits(), environment=dict(key.environment))
            return [
                *(self._executable, *self._namespaces(), *self._mounts(key.interpreter)),
                *arguments.set_variables(environment(nothing, -1)),
                *("--info-fd", str(pipes.info[1]), "--ro-bind-data", str(pipes.data(PASSWD)), "/etc/passwd"),
                *("--remount-ro", "/", "--chdir", "/", "--", str(key.interpreter), "-P", "-s", "-u"),
                *("-m", "executor.fork_server", str(control), str(system_calls), key.toolchain),
            ]

        return WarmParent(argv, program())

    def _namespaces(self) -> Iterator[str]:
        # To make namespaces and mounts for a child, and to give it the user that owns nothing.
        # Without root that user is root of the parent's own namespace under another name, which takes CAP_SETFCAP.
        own = ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP") if as_root() else ("CAP_SETPCAP", "CAP_SETFCAP")
        return arguments.namespaces("CAP_SYS_ADMIN", *own, uid=0)

    def _mounts(self, interpreter: Path) -> Iterator[str]:
        yield from arguments.system(_PARENT_TMP_BYTES, _PARENT_TMP_BYTES)
        yield from ("--perms", "0755", "--dir", str(ROOT))
        yield from arguments.bound(arguments.installed((interpreter,)))


def _key(command: Command) -> WarmKey:
    assert command.warm is not None
    return WarmKey(command.warm, command.interpreter, tuple(sorted(command.environment.items())))


def _shows_all(command: Command) -> bool:
    """Whether what a parent shows its children, its own toolchain, has the interpreters that the step starts, too."""
    own = arguments.installed((command.interpreter,))
    return set(arguments.installed((command.interpreter, *command.beside))) <= set(own)


class _Probed:
    """A sandbox whose every program is a child of a warm parent like that of ``like``."""

    def __init__(self, steps: WarmSteps, like: Command) -> None:
        self.name, self._steps, self._like = steps.name, steps, like

    def execute(self, command: Command) -> Ending:
        out = command.workspace / OUT
        out.mkdir(exist_ok=True)
        if as_root():
            os.chown(out, SANDBOX_UID, SANDBOX_UID)
        command = replace(command, environment=self._like.environment, warm=self._like.warm)
        return self._steps._run(command, NO_OBSERVERS, time.monotonic())


def _shown(command: Command) -> Iterator[arguments.Bind]:
    for flag, source, place in arguments.workspace(command):
        if flag != "--ro-bind-try" or source.exists():
            yield flag, source, place


def _begin(seat: WarmSeat, command: Command, inherited_bytes: int) -> None:
    seat.cgroup.bound(command.limits)
    shown = [(source, place, flag != "--bind") for flag, source, place in _shown(command)]
    mounts = _detached(shown)
    try:
        request = {
            "argv": command.argv[1:],
            "as_root": as_root(),
            "limits": arguments.resource_limits(command.limits, seat.cgroup),
            "mounts": [(str(place.relative_to(ROOT)), source.is_dir()) for source, place, _ in shown],
            "shm_bytes": shm_bytes(command.limits),
            "tmp_bytes": tmp_bytes(command.limits),
            "variables": environment(command, PROGRESS_DESCRIPTOR),
        }
        seat.begin(request, mounts, inherited_bytes)
    finally:
        for descriptor in mounts:
            os.close(descriptor)


def _detached(shown: list[tuple[Path, Path, bool]]) -> list[int]:
    try:
        return detach([(str(source), read_only) for source, _, read_only in shown], as_root())
    except OSError as error:
        raise WarmFailed(f"its files can't be shown to it ({error.strerror or error})") from None


def _empty(out: Path) -> None:
    remove_tree(out)
    out.mkdir()
    if as_root():
        os.chown(out, SANDBOX_UID, SANDBOX_UID)
