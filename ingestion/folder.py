"""FolderSource: watch a folder and report every complete drop in it, once.

What a drop is, :mod:`ingestion.drop_rules` says. When one is complete:

- a file directly in the watched folder or in a group: at once when its writer closed it, else (a rename tells no
  closing) when size and mtime have held for ``settle_s``; an empty file always waits so long;
- a folder: when nothing in it has changed for ``folder_quiet_s`` and every file its weight index names is there;
- a sidecar or companion that arrives later or changes makes its model a new arrival; put them there first. A sidecar
  that names a companion which is not there holds its model back for another ``folder_quiet_s``.

Events only say where to look; what is reported is decided by looking. A full look at the start, every ``rescan_s`` and
whenever the kernel's queue overflowed finds what no event told.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue

from ingestion.arrival import Arrival, FileStat
from ingestion.drop_rules import is_ignored, is_model_folder, is_sidecar, makes_a_model_folder
from ingestion.drops import Look, drops, entries, is_drop, look_at
from ingestion.opening import shown
from ingestion.watcher import Notice, Watcher
from schemas.errors import ModeliumError
from schemas.sidecar import FILE_SUFFIX

__all__ = ["FolderSource", "drops"]

log = logging.getLogger(__name__)

_OLD_S = 60.0
"""A file unchanged for so long by the file system's own clock needs no second look, even if that clock is a bit off."""
_POLL_S = 5.0
"""Seconds between full scans where the kernel cannot watch."""


@dataclass
class _Waiting:
    """A drop that is not complete yet. Times are of the monotonic clock."""

    look: Look
    since: float
    check_at: float
    companions_until: float | None = None
    reason: str = ""


class FolderSource:
    """Watches ``root``; ``on_arrival`` is called on one thread of its own, one drop after another.

    When ``on_arrival`` raises a retryable ModeliumError the drop is reported again after ``rescan_s``; after another
    ModeliumError it is not, until it changes. Any other exception is a bug and ends the source, see :attr:`alive`.
    Within one source nothing is reported twice with the same path, sizes and mtimes.
    """

    def __init__(
        self,
        root: Path,
        on_arrival: Callable[[Arrival], object],
        *,
        settle_s: float = 2,
        folder_quiet_s: float = 5,
        rescan_s: float = 60,
        index_patience_s: float = 900,
    ) -> None:
        """Make a source; ``index_patience_s`` bounds the wait for files that an index names but nobody brings."""
        self.root = root.absolute()
        self._on_arrival = on_arrival
        self._settle_s, self._quiet_s, self._rescan_s = settle_s, folder_quiet_s, rescan_s
        self._index_patience_s = index_patience_s
        self._notices: SimpleQueue[Notice] = SimpleQueue()
        self._waiting: dict[Path, _Waiting] = {}
        self._reported: dict[Path, tuple[FileStat, ...]] = {}
        self._closed: dict[Path, tuple[int, int]] = {}
        self._groups: set[Path] = {self.root}
        self._models_naming: dict[Path, set[Path]] = {}
        self._scan_at = 0.0
        self._overflowed = False
        self._watcher = Watcher(self.root, self._notices)
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Watch, and report what is there already. Returns once no later change can be missed."""
        self.root.mkdir(parents=True, exist_ok=True)
        try:
            self._watcher.start()
        except OSError as error:
            self._rescan_s = min(_POLL_S, self._rescan_s)
            log.warning(
                "%s cannot be watched (%s); it is scanned every %g s instead. Raise the kernel's "
                "fs.inotify.max_user_watches and max_user_instances.",
                self.root, error, self._rescan_s,
            )  # fmt: skip
        self._thread = threading.Thread(target=self._work, name=f"watching {self.root}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop watching; returns when a delivery at work has ended. What waits is reported after the next start."""
        self._watcher.stop()
        if self._thread is not None:
            self._notices.put(Notice("stop"))
            self._thread.join()
            self._thread = None

    def scan(self) -> None:
        """Look at the whole folder soon; what is found is reported when it is complete."""
        self._notices.put(Notice("scan"))

    @property
    def alive(self) -> bool:
        """Whether the source is at work."""
        return self._thread is not None and self._thread.is_alive()

    def waiting(self) -> dict[Path, str]:
        """Return the drops that are not complete yet, each with what it waits for."""
        return {path: waiting.reason for path, waiting in list(self._waiting.items()) if waiting.reason}

    # The thread

    def _work(self) -> None:
        ended = False
        try:
            while not ended:
                now = time.monotonic()
                if now >= self._scan_at:
                    # After an overflow watchdog still rebuilds its watches while we look: look again soon.
                    self._scan_at = now + (min(1.0, self._rescan_s) if self._overflowed else self._rescan_s)
                    self._overflowed = False
                    self._scan_group(self.root)
                for path in [p for p, w in self._waiting.items() if w.check_at <= now]:
                    self._check(path)
                ended = self._take_notices()
        finally:
            if not ended:
                log.critical("watching %s has ended after an unexpected error", self.root)

    def _take_notices(self) -> bool:
        """Wait for the next thing to do, then take every notice there is; True when told to stop."""
        due = min((w.check_at for w in self._waiting.values()), default=self._scan_at)
        wait_s = max(0.0, min(due, self._scan_at) - time.monotonic())
        try:
            notice = self._notices.get(timeout=wait_s) if wait_s else self._notices.get_nowait()
            while True:
                if notice.kind == "stop":
                    return True
                if notice.kind in ("scan", "overflow"):
                    self._scan_at = 0.0
                    self._overflowed |= notice.kind == "overflow"
                else:
                    self._notice(notice.kind, Path(notice.path))
                notice = self._notices.get_nowait()
        except Empty:
            return False

    def _notice(self, kind: str, path: Path) -> None:
        if kind == "deleted":
            self._groups = {g for g in self._groups if not g.is_relative_to(path)} | {self.root}
            self._closed.pop(path, None)
        elif kind == "closed" and (path.parent in self._groups or path in self._models_naming):
            try:
                info = path.lstat()
                self._closed[path] = (info.st_size, info.st_mtime_ns)
            except OSError:
                return
        for model in self._models_naming.get(path, ()):
            self._touch(model, event=True)
        if is_sidecar(path.name) and path.parent in self._groups:
            self._touch(path.with_name(path.name.removesuffix(FILE_SUFFIX)), event=True)
        elif (drop := self._drop_of(path)) is not None:
            self._touch(drop, event=True)

    def _drop_of(self, path: Path) -> Path | None:
        """Return the drop, or the folder not judged yet, that ``path`` belongs to."""
        try:
            parts = path.relative_to(self.root).parts
        except ValueError:
            return None
        if path.parent != self.root and makes_a_model_folder(path.name):
            self._groups.discard(path.parent)
        place = self.root
        for index, part in enumerate(parts):
            if is_ignored(part):
                return None
            place = place / part
            if index == len(parts) - 1:
                return place if place not in self._groups and is_drop(place) else None
            if place not in self._groups:
                return place
        return None

    # Looking

    def _touch(self, path: Path, *, event: bool, quiet: bool = False) -> None:
        """Begin or go on to wait for ``path``; ``quiet`` when it is known to have been left alone long enough."""
        now = time.monotonic()
        waiting = self._waiting.get(path)
        if waiting is not None:
            if event:
                soon = now if not waiting.look.is_folder else now + self._quiet_s / 4
                waiting.check_at = min(waiting.check_at, soon)
            return
        look = self._look(path)
        if look is not None and self._reported.get(path) != look.files:
            since = now - max(self._quiet_s, self._settle_s) if quiet else now
            self._waiting[path] = _Waiting(look, since, check_at=now)

    def _look(self, path: Path) -> Look | None:
        look = look_at(path)
        for companion in look.named if look is not None else ():
            self._models_naming.setdefault(companion, set()).add(path)
        return look

    def _scan_group(self, group: Path, *, quiet: bool = False) -> None:
        found = entries(group)
        if found or group == self.root:  # an empty folder may yet become a model
            self._groups.add(group)
        for entry in found:
            path = Path(entry.path)
            if path in self._groups and (not entry.is_dir(follow_symlinks=False) or is_model_folder(path)):
                self._groups.discard(path)
            if path in self._groups:
                self._scan_group(path, quiet=quiet)
            else:
                self._touch(path, event=False, quiet=quiet)

    def _check(self, path: Path) -> None:
        """Look at a waiting drop again, and report it when it is complete."""
        waiting = self._waiting[path]
        now = time.monotonic()
        look = self._look(path)
        if look is None or self._reported.get(path) == look.files:
            del self._waiting[path]
            return
        if look.state != waiting.look.state or look.is_folder != waiting.look.is_folder:
            waiting.since = now
        waiting.look = look
        remaining_s, waiting.reason = self._remaining(waiting, now)
        if remaining_s > 0:
            waiting.check_at = now + remaining_s
            return
        if look.is_folder and not is_model_folder(path):
            del self._waiting[path]
            self._scan_group(path, quiet=True)
            return
        self._deliver(path, waiting)

    def _remaining(self, waiting: _Waiting, now: float) -> tuple[float, str]:
        """Return the seconds until the next look, 0 when the drop is complete, and what it waits for."""
        look = waiting.look
        hold_s = self._quiet_s if look.is_folder else self._settle_s
        if not (not look.is_folder and self._all_closed(look)):
            age_s = now - waiting.since
            by_its_clock_s = time.time() - look.changed_ns / 1e9
            if age_s < hold_s and by_its_clock_s < _OLD_S + hold_s:
                return hold_s - age_s, f"unchanged for {hold_s:g} s"
        if look.missing and now - waiting.since < self._index_patience_s:
            return hold_s or 0.1, f"files that its index names: {', '.join(look.missing[:5])}"
        if look.missing_companions:
            if waiting.companions_until is None:
                waiting.companions_until = now + self._quiet_s
            if now < waiting.companions_until:
                names = ", ".join(path.name for path in look.missing_companions)
                return waiting.companions_until - now, f"files that its sidecar names: {names}"
        return 0, ""

    def _all_closed(self, look: Look) -> bool:
        """Whether every file of the drop was seen closed as it is now, or is as it was when last reported."""
        before = self._reported.get(look.path, ())
        for stat in look.files:
            name, size_bytes, mtime_ns = stat
            if stat not in before and self._closed.get(look.path.parent / name) != (size_bytes, mtime_ns):
                return False
        return look.files[0][1] > 0

    def _deliver(self, path: Path, waiting: _Waiting) -> None:
        look = waiting.look
        try:
            self._on_arrival(look.arrival(self.root))
        except ModeliumError as error:
            log.warning("%s: %s", shown(path), error)
            if error.retryable:
                waiting.check_at = time.monotonic() + self._rescan_s
                waiting.reason = str(error)
                return
        del self._waiting[path]
        self._reported[path] = look.files
        for name, _, _ in look.files:
            self._closed.pop(path.parent / name, None)
