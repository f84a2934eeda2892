"""Copying a model's files out of the store into an entry: plain files only, and nothing a server would execute."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path, PurePosixPath

from deployer.config_text import MODEL_FILE
from schemas.errors import ModeliumError, NotFound

_CODE_SUFFIXES = frozenset({".py", ".pyc", ".pyd", ".so", ".dll", ".dylib", ".sh", ".exe", ".pbtxt"})
_BINARY_MAGICS = (b"\x7fELF", b"MZ", b"#!", b"\xcf\xfa\xed\xfe")
_CHUNK_BYTES = 1 << 20


def copy_model(model: Path, version_folder: Path, entry: str | None) -> None:
    """Copy ``model`` into the new folder ``version_folder`` as model.onnx and what lies beside it; fsync everything.

    ``model`` is a file of any name, or a folder; ``entry`` is the model file's path inside it (model.onnx when None).
    External data keep their names, since the graph names them. Triton looks for its backend's library and for
    ``model.py`` beside a model before it looks at home: what is or may be code is therefore never copied, and no link
    is followed.
    """
    if not stat.S_ISDIR(os.lstat(model).st_mode):
        version_folder.mkdir(mode=0o755)
        _copy_file(model, version_folder / MODEL_FILE)
        sync_folder(version_folder)
        return
    relative = PurePosixPath(entry or MODEL_FILE)
    if relative.is_absolute() or ".." in relative.parts:
        raise ModeliumError(f"The model file {entry!r} lies outside its folder.")
    source = model / relative
    if not source.is_file() or source.is_symlink():
        raise NotFound(f"The model folder has no file {str(relative)!r}.")
    _copy_folder(source.parent, version_folder, main=source.name)


def _copy_folder(source: Path, destination: Path, main: str | None) -> None:
    destination.mkdir(mode=0o755)
    with os.scandir(source) as found:
        entries = sorted(found, key=lambda item: item.name)
    for item in entries:
        path = Path(item.path)
        if item.is_symlink():
            continue
        if item.is_dir(follow_symlinks=False):
            if not item.name.startswith("."):
                _copy_folder(path, destination / item.name, main=None)
            continue
        if main is not None and item.name == main:
            _copy_file(path, destination / MODEL_FILE)
        elif item.is_file(follow_symlinks=False) and _is_data(path) and not (main and item.name == MODEL_FILE):
            _copy_file(path, destination / item.name)
    sync_folder(destination)


def _is_data(path: Path) -> bool:
    name = path.name.lower()
    if name.startswith(".") or name.endswith((".modelium.yaml", "modelium.yaml")) or ".so." in name:
        return False
    if path.suffix.lower() in _CODE_SUFFIXES:
        return False
    with path.open("rb") as file:
        return not file.read(4).startswith(_BINARY_MAGICS)


def _copy_file(source: Path, destination: Path) -> None:
    descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as reader:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ModeliumError(f"{source.name!r} is not a plain file.")
        with destination.open("xb") as writer:
            shutil.copyfileobj(reader, writer, _CHUNK_BYTES)
            writer.flush()
            os.fsync(writer.fileno())
            os.fchmod(writer.fileno(), 0o644)


def write_file(path: Path, text: str) -> None:
    """Write a new file and fsync it."""
    with path.open("x", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
        os.fchmod(file.fileno(), 0o644)


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def same_files(left: Path, right: Path) -> bool:
    """Whether two folders hold the same names with the same bytes."""
    names = [sorted(p.relative_to(f).as_posix() for p in f.rglob("*") if p.is_file()) for f in (left, right)]
    return names[0] == names[1] and all(_same(left / name, right / name) for name in names[0])


def _same(left: Path, right: Path) -> bool:
    if left.stat().st_size != right.stat().st_size:
        return False
    with left.open("rb") as a, right.open("rb") as b:
        while chunk := a.read(_CHUNK_BYTES):
            if chunk != b.read(_CHUNK_BYTES):
                return False
    return True
