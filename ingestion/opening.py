"""Open what was dropped without following a link, and refuse what cannot be a model's file."""

from __future__ import annotations

import errno
import os
import re
import shlex
import stat
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from schemas.errors import ModelFailed, ModeliumError, NeedsInput, NotFound, StorageFull

MAX_PATH_BYTES = 1024
MAX_DEPTH = 32
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_SPECIAL = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_BLOB_LINK = re.compile(r"(^|/)blobs/[0-9a-f]{32,64}$")
_CACHE_NAME = re.compile(r"^models--(?:.+--)?(.+)$")
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def shown(path: str | os.PathLike[str]) -> str:
    """Return ``path`` as text that can be printed and stored: undecodable bytes and controls are escaped."""
    text = os.fsencode(os.fspath(path)).decode("utf-8", "backslashreplace")
    escaped = (repr(c)[1:-1] if unicodedata.category(c) in ("Cc", "Zl", "Zp") or c in _BIDI else c for c in text)
    return "".join(escaped)[:300]


def check_name(relative: str) -> None:
    """Refuse a path that cannot be kept, shown and served safely. Raises ModelFailed with a sentence."""
    fault = None
    if any(unicodedata.category(c) == "Cs" for c in relative):
        fault = "is not valid UTF-8"
    elif any(unicodedata.category(c) in ("Cc", "Zl", "Zp") or c in _BIDI for c in relative):
        fault = "contains control characters"
    elif len(os.fsencode(relative)) > MAX_PATH_BYTES:
        fault = f"is longer than {MAX_PATH_BYTES} bytes"
    elif relative.count("/") >= MAX_DEPTH:
        fault = f"is more than {MAX_DEPTH} folders deep"
    if fault:
        raise ModelFailed(f"The name {shown(relative)!r} {fault}.", hint="Rename it and drop it again.")


@contextmanager
def opened(path: Path, *, below: Path | None = None) -> Iterator[int]:
    """Yield a read-only descriptor of the file or folder ``path``; no link is followed on the way from ``below``.

    Without ``below`` the parents of ``path`` are trusted, as when a person names a path on the command line.
    Raises LinkFound, ModelFailed for a special file, and OSError as the system has it.
    """
    root = below if below is not None and below != path else path.parent
    parts = path.relative_to(root).parts
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            inner = open_entry(folder, part, path)
            os.close(folder)
            folder = inner
        fd = open_entry(folder, parts[-1], path)
    finally:
        os.close(folder)
    try:
        yield fd
    finally:
        os.close(fd)


def open_entry(folder_fd: int, name: str, path: Path) -> int:
    """Open ``name`` in an open folder; ``path`` is where it stands, for messages. The caller closes the descriptor.

    The look before opening is for the message and because opening a device can have effects; O_NOFOLLOW and the
    look at what was opened hold against a swap in between.
    """
    try:
        before = os.stat(name, dir_fd=folder_fd, follow_symlinks=False)
        _refuse_special(before.st_mode, folder_fd, name, path)
        fd = os.open(name, _READ, dir_fd=folder_fd)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise ModelFailed(f"{shown(path)} was replaced by a link or a special file while it was read.") from None
        raise
    try:
        _refuse_special(os.fstat(fd).st_mode, folder_fd, name, path)
    except ModeliumError:
        os.close(fd)
        raise
    return fd


def _refuse_special(mode: int, folder_fd: int, name: str, path: Path) -> None:
    kind = stat.S_IFMT(mode)
    if kind in (stat.S_IFREG, stat.S_IFDIR):
        return
    if kind != stat.S_IFLNK:
        raise ModelFailed(
            f"{shown(path)} is {_SPECIAL.get(kind, 'a special file')}, not a file.",
            hint="Drop regular files and folders only.",
        )
    try:
        target = os.readlink(name, dir_fd=folder_fd)
    except OSError:
        target = ""
    raise LinkFound(f"{shown(path)} is a link to {shown(target)}; links are not followed.", target=target)


class LinkFound(ModelFailed):
    """A link was met; the store turns it into the sentence that tells how to copy what it points to."""

    def __init__(self, message: str, *, target: str) -> None:
        super().__init__(message, hint="Drop the file itself instead: cp -rL copies with links resolved.")
        self.target = target


def link_refusal(found: LinkFound, drop: Path, *, below: Path | None) -> ModeliumError:
    """Return the error for a drop that holds a link, with the exact command that mends it.

    A Hugging Face cache snapshot is a folder of links into ``../../blobs``; so is a link to such a folder.
    """
    source = Path(os.path.realpath(drop))
    is_cache = bool(_BLOB_LINK.search(found.target)) or "snapshots" in PurePosixPath(found.target).parts
    if is_cache and source == drop and not _links_resolve(drop):
        source = Path("~/.cache/huggingface/hub/models--ORGANISATION--NAME/snapshots/REVISION")
    command = _copy_command(source, drop, below)
    if is_cache:
        return NeedsInput(
            f"{shown(drop)} is a snapshot of the Hugging Face cache: its files are links, which are not followed.",
            hint=f"Copy it with the links resolved: {command}",
        )
    return ModelFailed(str(found.args[0]), hint=f"Copy what it points to: {command}")


def _links_resolve(drop: Path) -> bool:
    return all(p.exists() for p in drop.iterdir()) if drop.is_dir() else drop.exists()


def _copy_command(source: Path, drop: Path, below: Path | None) -> str:
    src = shown(source) if source.parts[0] == "~" else shlex.quote(shown(source))
    if below is None:
        named = next((m[1] for p in source.parts if (m := _CACHE_NAME.match(p))), source.name)
        return f"cp -rL {src} {shlex.quote(shown(named))}"
    here = shlex.quote(shown(drop))
    if source == drop:
        hidden = shlex.quote(shown(drop.with_name(f".{drop.name}")))
        return f"cp -rL {here} {hidden} && rm -r {here} && mv {hidden} {here}"
    return f"rm -r {here} && cp -rL {src} {here}"


@contextmanager
def readable(path: Path, *, ours: Path) -> Iterator[None]:
    """Turn the operating system's refusals into sentences while ``path`` is read and copied below ``ours``.

    What goes wrong below ``ours`` is our fault and stays an OSError, except that a full disk is a StorageFull.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(
                f"The disk is full; {shown(path)} could not be stored.", hint="Free some space."
            ) from None
        if Path(os.fsdecode(error.filename or b"")).is_relative_to(ours):
            raise
        if isinstance(error, FileNotFoundError):
            raise NotFound(f"{shown(path)} is not there, or not any more.", hint="Drop it again.") from None
        raise ModelFailed(
            f"{shown(path)} cannot be read: {error.strerror}.",
            hint="See that the file's owner and mode let this user read it.",
        ) from None
