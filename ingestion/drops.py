"""Look at a drop: what it consists of just now, and whether something of it is still missing."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ingestion import sidecar
from ingestion.arrival import Arrival, FileStat, etag_of
from ingestion.drop_rules import (
    is_companion,
    is_ignored,
    is_model_folder,
    is_sidecar,
    left_out,
    missing_files,
)
from ingestion.opening import shown
from schemas.errors import InvalidDocument, NotFound, UsageError
from schemas.sidecar import FOLDER_NAME


@dataclass(frozen=True)
class Look:
    """One look at a drop."""

    path: Path
    is_folder: bool
    files: tuple[FileStat, ...]
    """What tells this content from the next: the model's files, its sidecar, and the sidecar's companions."""
    size_bytes: int
    state: tuple[object, ...]
    """Changes whenever anything below the drop does, unfinished downloads included."""
    changed_ns: int
    """Latest status change by the file system's clock."""
    missing: tuple[str, ...] = ()
    """Files that a folder's weight index names and that are not there."""
    named: tuple[Path, ...] = ()
    """Where the sidecar's companions stand or should stand."""

    @property
    def etag(self) -> str:
        """What tells this content from the next without reading it."""
        return etag_of(self.files)

    @property
    def missing_companions(self) -> tuple[Path, ...]:
        """Companions that are not there."""
        return tuple(path for path in self.named if not os.path.lexists(path))

    def arrival(self, root: Path) -> Arrival:
        """Return this look as a complete drop below ``root``."""
        relative = self.path.relative_to(root).as_posix() if self.path != root else self.path.name
        return Arrival(
            uri=self.path.as_uri(),
            path=self.path,
            size_bytes=self.size_bytes,
            etag=self.etag,
            relative=shown(relative),
            root=root if self.path != root else self.path.parent,
        )


def look_at(path: Path) -> Look | None:
    """Return one look at the file or folder ``path``, None when it is gone. Follows no links."""
    try:
        info = path.lstat()
    except OSError:
        return None
    return _look_at_folder(path, info) if stat.S_ISDIR(info.st_mode) else _look_at_file(path, info)


def drops(path: Path) -> list[Arrival]:
    """Return the drops at ``path`` as they are now, without waiting: a model gives one, a plain folder each in it.

    A file is a drop whatever its name, because a person named it.
    Raises NotFound, or UsageError for a sidecar, which is no model.
    """
    path = path.absolute()
    if not os.path.lexists(path):
        raise NotFound(f"There is nothing at {shown(path)}.", hint="Name a model file or a folder.")
    if is_sidecar(path.name) or path.name == FOLDER_NAME:
        raise UsageError(f"{shown(path)} is a sidecar, not a model.", hint="Name the model beside it.")
    if is_group(path):
        return [look.arrival(path) for look in map(look_at, find_drops(path)) if look is not None]
    look = look_at(path)
    return [look.arrival(path.parent)] if look is not None else []


def is_group(path: Path) -> bool:
    """Whether ``path`` is a folder that groups drops and is no model itself."""
    return path.is_dir() and not path.is_symlink() and not is_model_folder(path)


def find_drops(group: Path) -> Iterator[Path]:
    """Yield the drops in a folder that groups them, deeper groups included, sorted by name."""
    for entry in entries(group):
        if entry.is_dir(follow_symlinks=False) and not is_model_folder(Path(entry.path)):
            yield from find_drops(Path(entry.path))
        else:
            yield Path(entry.path)


def entries(group: Path) -> list[os.DirEntry[str]]:
    """Return what may be a drop or a group among the entries of ``group``; nothing when it is gone."""
    try:
        with os.scandir(group) as scanned:
            found = sorted(scanned, key=lambda entry: entry.name)
    except OSError:
        return []
    return [e for e in found if not is_ignored(e.name) and (e.is_dir(follow_symlinks=False) or _starts_a_job(e.name))]


def is_drop(path: Path) -> bool:
    """Whether ``path`` in a group is a drop or a folder to be judged, not a file that belongs to a drop."""
    return not is_ignored(path.name) and (_starts_a_job(path.name) or (path.is_dir() and not path.is_symlink()))


def _starts_a_job(name: str) -> bool:
    return not is_sidecar(name) and not is_companion(name)


def _look_at_file(path: Path, info: os.stat_result) -> Look:
    stats = [(path, info)]
    named = _named_by_sidecar(path)
    for other in (sidecar.place(path), *named):
        try:
            stats.append((other, other.lstat()))
        except OSError:
            continue
    files = tuple((_name(p.relative_to(path.parent)), i.st_size, i.st_mtime_ns) for p, i in stats)
    return Look(
        path=path,
        is_folder=False,
        files=files,
        size_bytes=sum(i.st_size for _, i in stats),
        state=files,
        changed_ns=max(i.st_ctime_ns for _, i in stats),
        named=named,
    )


def _look_at_folder(path: Path, info: os.stat_result) -> Look:
    files: list[FileStat] = []
    state: list[object] = []
    changed_ns = info.st_ctime_ns
    folders = [path]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as scanned:
                found = [(entry, entry.stat(follow_symlinks=False)) for entry in scanned]
        except OSError:
            continue  # it went while we looked; the next look differs
        for entry, stats in found:
            relative = _name(Path(entry.path).relative_to(path))
            if stat.S_ISDIR(stats.st_mode):
                if not is_ignored(entry.name):
                    folders.append(Path(entry.path))
                continue
            changed_ns = max(changed_ns, stats.st_ctime_ns)
            state.append((relative, stats.st_size, stats.st_mtime_ns))
            if relative == FOLDER_NAME or not left_out(relative):
                files.append((relative, stats.st_size, stats.st_mtime_ns))
    files.sort()
    return Look(
        path=path,
        is_folder=True,
        files=tuple(files),
        size_bytes=sum(size for _, size, _ in files),
        state=tuple(sorted(state, key=repr)),
        changed_ns=changed_ns,
        missing=missing_files(path, {name for name, _, _ in files}),
        named=_named_by_sidecar(path),
    )


def _named_by_sidecar(model: Path) -> tuple[Path, ...]:
    """Return where the companions that a readable sidecar names stand; a faulty sidecar is reported later."""
    try:
        found = sidecar.read_text(model)
        if found is None:
            return ()
        where, text = found
        return tuple(where.parent / name for name in sidecar.parse(text).companions())
    except InvalidDocument:
        return ()


def _name(relative: Path) -> str:
    return os.fsencode(relative).decode("utf-8", "backslashreplace")
