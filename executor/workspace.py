"""The folder of one run on the host: made, locked by its owner, and removed however hostile its content is."""

from __future__ import annotations

import fcntl
import itertools
import os
import secrets
import stat
from pathlib import Path

_PREFIX = "step-"
_TRASH = "trash-"


class Workspace:
    """A folder of mode 0700 that belongs to this process until :meth:`remove`.

    A lock on the folder says that its owner lives; the kernel drops it with the process, so a sweeper can tell.
    """

    def __init__(self, parent: Path) -> None:
        parent.mkdir(parents=True, exist_ok=True)
        while True:
            path = parent / f"{_PREFIX}{os.getpid()}-{secrets.token_hex(6)}"
            path.mkdir(mode=0o700)
            lock = _lock(path)
            if lock is not None:  # None: a sweeper was quicker
                self.path, self._lock = path, lock
                return

    def remove(self) -> None:
        """Remove the folder with all it holds; does nothing the second time."""
        if self._lock >= 0:
            remove_tree(self.path)
            os.close(self._lock)
            self._lock = -1

    def abandon(self) -> None:
        """Close this process's copy of the lock; the folder belongs to the process that this one was forked from."""
        os.close(self._lock)
        self._lock = -1


def sweep(parent: Path) -> int:
    """Remove the workspaces below ``parent`` whose owners are dead; return how many."""
    removed = 0
    for path in parent.glob(f"{_PREFIX}*") if parent.is_dir() else ():
        lock = _lock(path)
        if lock is not None:
            remove_tree(path)
            os.close(lock)
            removed += 1
    return removed


def is_owned(path: Path) -> bool:
    """Whether ``path`` is a workspace whose owner lives."""
    lock = _lock(path)
    if lock is not None:
        os.close(lock)
    return lock is None and path.is_dir()


def can_lock(parent: Path) -> bool:
    """Whether folders below ``parent`` can be locked, without which no :class:`Workspace` can be made there."""
    path = parent / f".lock-{secrets.token_hex(6)}"
    path.mkdir(parents=True)
    try:
        lock = _lock(path)
        if lock is not None:
            os.close(lock)
        return lock is not None
    finally:
        path.rmdir()


def _lock(path: Path) -> int | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.stat().st_ino == os.fstat(descriptor).st_ino:
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


def remove_tree(path: Path) -> None:
    """Remove a folder of any depth and any modes, following no link.

    Folders are lifted to the top before they are emptied: neither recursion, open descriptors nor path length grow
    with the depth, which whoever wrote the tree chose.
    """
    try:
        top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        waiting = _emptied(top)
        serial = itertools.count()
        while waiting:
            name = waiting.pop()
            folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=top)
            try:
                for kept in _emptied(folder):
                    lifted = f"{_TRASH}{next(serial)}-{secrets.token_hex(4)}"
                    os.rename(kept, lifted, src_dir_fd=folder, dst_dir_fd=top)
                    waiting.append(lifted)
            finally:
                os.close(folder)
            os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)
    path.rmdir()


def _emptied(folder: int) -> list[str]:
    """Unlink everything in ``folder`` but folders; return those, made ready to be entered and moved."""
    as_user = os.geteuid() != 0  # root needs no permission
    if as_user:
        os.fchmod(folder, 0o700)
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries]
    folders = []
    for name in names:
        if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            if as_user:
                os.chmod(name, 0o700, dir_fd=folder)
            folders.append(name)
        else:
            os.unlink(name, dir_fd=folder)
    return folders
