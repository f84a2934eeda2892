"""One control group per sandbox, where this process may make one: bounds that hold for all its processes together."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from schemas.step_run import Limits

Controller = Literal["memory", "pids", "cpu", "cpuacct"]

_PREFIX = "modelium-"
_PERIOD_US = 100_000
_LAUNCHER_PROCESSES = 3
"""bwrap outside, bwrap as process 1 inside, and the program that drops privileges."""
_serial = itertools.count()


@dataclass(frozen=True)
class Hierarchy:
    """Where groups for one controller can be made."""

    version: Literal[1, 2]
    parent: Path


@dataclass
class Cgroup:
    """A group that exists until :meth:`remove`.

    ``hierarchies`` names the controllers it has, ``refused`` those of them that did not take its bounds.
    """

    name: str
    hierarchies: dict[Controller, Hierarchy]
    refused: set[Controller] = field(default_factory=set)

    @classmethod
    def create(cls, limits: Limits | None = None) -> Cgroup:
        """Make a group with the bounds of ``limits``; it has no controller at all where none is writable.

        Without limits it bounds nothing until :meth:`bound`.
        """
        group = cls(f"{_PREFIX}{os.getpid()}-{start_time(os.getpid())}-{next(_serial)}", {})
        for controller, hierarchy in _hierarchies().items():
            with contextlib.suppress(OSError):
                (hierarchy.parent / group.name).mkdir(exist_ok=True)
                group.hierarchies[controller] = hierarchy
        if limits is not None:
            group.bound(limits)
        return group

    def bound(self, limits: Limits) -> None:
        """Bound its processes; a controller that refuses to is no longer said to be enforced."""
        for controller, hierarchy in self.hierarchies.items():
            wanted = _bounds(controller, hierarchy.version, limits)
            if not all(self._write(controller, file, value) for file, value in wanted):
                self.refused.add(controller)

    @classmethod
    def of(cls, pid: int, name: str) -> Cgroup:
        """Return the group that someone else made for process ``pid``, without a controller where it can't be seen.

        The group's folder has to hold ``name``: a pid that another machine or namespace told is someone else's here.
        """
        group = cls("", {})
        for controller, hierarchy in _hierarchies_of(str(pid)).items():
            if name in hierarchy.parent.name:
                group.name = hierarchy.parent.name
                group.hierarchies[controller] = Hierarchy(hierarchy.version, hierarchy.parent.parent)
        return group

    @property
    def entrances(self) -> list[Path]:
        """The files that a process writes its pid to, to join."""
        return [folder / "cgroup.procs" for folder in self._folders()]

    def label(self, controller: Controller) -> str | None:
        """Return ``cgroup-v1`` or ``cgroup-v2`` when ``controller`` is enforced, else None."""
        is_enforced = controller in self.hierarchies and controller not in self.refused
        return f"cgroup-v{self.hierarchies[controller].version}" if is_enforced else None

    def oom_kills(self) -> int:
        """How many processes the kernel has killed because the group's memory was spent."""
        return self._counter("memory", {1: "memory.oom_control", 2: "memory.events"}, "oom_kill") or 0

    def memory_bytes(self) -> int | None:
        """Memory in use that is not page cache: anonymous and shared (tmpfs)."""
        anonymous = self._counter("memory", {1: "memory.stat", 2: "memory.stat"}, "anon", "total_rss")
        shared = self._counter("memory", {1: "memory.stat", 2: "memory.stat"}, "shmem", "total_shmem")
        return None if anonymous is None else anonymous + (shared or 0)

    def cpu_s(self) -> float | None:
        """CPU seconds used by all processes so far."""
        accounting = self.hierarchies.get("cpuacct")
        if accounting is not None:
            text = self._read("cpuacct", "cpuacct.usage")
            return int(text) / 1e9 if text and text.strip().isdigit() else None
        used_us = self._counter("cpu", {1: "cpu.stat", 2: "cpu.stat"}, "usage_usec")
        return None if used_us is None else used_us / 1e6

    def pids(self) -> set[int]:
        """The processes in the group."""
        found: set[int] = set()
        for entrance in self.entrances:
            with contextlib.suppress(OSError):
                found.update(map(int, entrance.read_text().split()))
        return found

    def kill(self) -> None:
        """Kill whatever is still in the group."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def remove(self, patience_s: float = 5.0) -> None:
        """Kill what is left and remove the group; a dying process keeps it busy for some milliseconds."""
        deadline = time.monotonic() + patience_s
        for folder in self._folders():
            while True:
                try:
                    folder.rmdir()
                except FileNotFoundError:
                    pass
                except OSError as error:
                    if error.errno == errno.EBUSY and time.monotonic() < deadline:
                        self.kill()
                        time.sleep(0.005)
                        continue
                break

    def _folders(self) -> list[Path]:
        return sorted({hierarchy.parent / self.name for hierarchy in self.hierarchies.values()})

    def _write(self, controller: Controller, file: str, value: str) -> bool:
        path = self.hierarchies[controller].parent / self.name / file
        try:
            path.write_text(value)
        except FileNotFoundError:
            # Swap accounting can be compiled out or switched off; the other bounds always exist.
            return "memsw" in file or "swap" in file
        except OSError:
            return False
        return True

    def _read(self, controller: Controller, file: str) -> str | None:
        try:
            return (self.hierarchies[controller].parent / self.name / file).read_text()
        except (KeyError, OSError):
            return None

    def _counter(self, controller: Controller, files: dict[int, str], *names: str) -> int | None:
        hierarchy = self.hierarchies.get(controller)
        text = self._read(controller, files[hierarchy.version]) if hierarchy else None
        found = dict(line.split(maxsplit=1) for line in (text or "").splitlines() if " " in line)
        # The longest name last: version 1 has both "rss" of the group and "total_rss" of all below it.
        values = [int(found[name]) for name in names if name in found]
        return values[-1] if values else None


def sweep() -> int:
    """Remove the groups that owners left which are dead by now; return how many."""
    removed = 0
    for parent, of_parent in itertools.groupby(
        sorted(_hierarchies().items(), key=lambda item: item[1].parent), key=lambda item: item[1].parent
    ):
        controller, hierarchy = next(of_parent)
        for folder in parent.glob(f"{_PREFIX}*-*-*"):
            owner, born, _ = folder.name.removeprefix(_PREFIX).split("-", 2)
            if owner.isdigit() and start_time(int(owner)) != born:
                Cgroup(folder.name, {controller: hierarchy}).remove(patience_s=1)
                removed += 1
    return removed


def start_time(pid: int) -> str:
    """Return when process ``pid`` began, in clock ticks since boot; with the pid it names a process for ever."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _bounds(controller: Controller, version: int, limits: Limits) -> list[tuple[str, str]]:
    memory, quota_us = str(limits.memory_bytes), int(limits.cpus * _PERIOD_US)
    pids = str(limits.processes + _LAUNCHER_PROCESSES)
    table: dict[tuple[Controller, int], list[tuple[str, str]]] = {
        # memory.memsw counts memory and swap together; memory.swap.max counts swap alone.
        ("memory", 1): [("memory.limit_in_bytes", memory), ("memory.memsw.limit_in_bytes", memory)],
        ("memory", 2): [("memory.max", memory), ("memory.swap.max", "0")],
        ("pids", 1): [("pids.max", pids)],
        ("pids", 2): [("pids.max", pids)],
        ("cpu", 1): [("cpu.cfs_period_us", str(_PERIOD_US)), ("cpu.cfs_quota_us", str(quota_us))],
        ("cpu", 2): [("cpu.max", f"{quota_us} {_PERIOD_US}")],
        ("cpuacct", 1): [],
    }
    return table.get((controller, version), [])


def _hierarchies() -> dict[Controller, Hierarchy]:
    """Where this process's own groups are, so that what bounds this process bounds its sandboxes too."""
    found = _hierarchies_of("self")
    for controller, place in list(found.items()):
        if place.version == 2:
            parent = _parent_with(controller, place.parent)
            if parent is None:
                del found[controller]
            else:
                found[controller] = Hierarchy(2, parent)
    return {controller: place for controller, place in found.items() if os.access(place.parent, os.W_OK | os.X_OK)}


def _hierarchies_of(process: str) -> dict[Controller, Hierarchy]:
    """Return the group that ``process`` is in, for each controller."""
    own: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            own.update(dict.fromkeys(controllers.split(","), path))
    found: dict[Controller, Hierarchy] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        root, mount = before.split()[3:5]
        if kind == "cgroup":
            known: tuple[Controller, ...] = ("memory", "pids", "cpu", "cpuacct")
            for controller in known:
                if controller in options.split(","):
                    found[controller] = Hierarchy(1, _own_folder(Path(mount), root, own.get(controller, "/")))
        elif kind == "cgroup2" and "" in own:
            wanted: tuple[Controller, ...] = ("memory", "pids", "cpu")
            for controller in wanted:
                found.setdefault(controller, Hierarchy(2, _own_folder(Path(mount), root, own[""])))
    return found


def _own_folder(mount: Path, root: str, path: str) -> Path:
    """Return the folder of group ``path`` below ``mount``, which shows the hierarchy from ``root`` on."""
    folder = mount / os.path.relpath(path, root) if path.startswith(root) else mount
    return folder if folder.is_dir() else mount


def _parent_with(controller: str, own: Path) -> Path | None:
    """Return a version 2 group whose children have ``controller``: the own one, or the one above it.

    A group with processes of its own cannot hand controllers down, and a user's session gives its groups one above.
    """
    for folder in (own, own.parent):
        control = folder / "cgroup.subtree_control"
        with contextlib.suppress(OSError):
            if controller in control.read_text().split():
                return folder
            if controller in (folder / "cgroup.controllers").read_text().split():
                control.write_text(f"+{controller}")
                return folder
    return None
