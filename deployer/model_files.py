"""Copying a model's files out of the store into an entry: plain files only, and nothing a server would execute."""

from __future__ import annotations

import os
import stat
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from deployer.backends import Backend
from schemas.errors import ModeliumError, NotFound

_CODE_SUFFIXES = frozenset({".py", ".pyc", ".pyd", ".so", ".dll", ".dylib", ".sh", ".exe", ".pbtxt"})
_BINARY_MAGICS = (b"\x7fELF", b"MZ", b"#!", b"\xcf\xfa\xed\xfe")
_CHUNK_BYTES = 1 << 20


def copy_model(model: Path, version_folder: Path, entry: str | None, backend: Backend) -> None:
    """Copy ``model`` into the new folder ``version_folder`` under the names that ``backend`` wants; fsync everything.

    ``model`` is a file of any name, or a folder; ``entry`` is the model file's path inside it (the backend's own name
    when None). An ONNX file's external data keep their names, since the graph names them; what lies beside a model of
    another format stays behind, but for the weights file of the same stem that the backend looks for. Triton looks for
    its backend's library and for ``model.py`` beside a model before it looks at home: what is or may be code is
    therefore never copied, and no link is followed.
    """
    if not stat.S_ISDIR(os.lstat(model).st_mode):
        if backend.data_suffix:
            raise NotFound(f"The model is one file, and its {backend.data_suffix} file with the weights is not there.")
        version_folder.mkdir(mode=0o755)
        copy_file(model, version_folder / backend.model_file)
        sync_folder(version_folder)
        return
    relative = PurePosixPath(entry or backend.model_file)
    if relative.is_absolute() or ".." in relative.parts:
        raise ModeliumError(f"The model file {entry!r} lies outside its folder.")
    source = model / relative
    if not source.is_file() or source.is_symlink():
        raise NotFound(f"The model folder has no file {str(relative)!r}.")
    if not backend.alone:
        _copy_folder(source.parent, version_folder, source.name, backend.model_file)
        return
    version_folder.mkdir(mode=0o755)
    copy_file(source, version_folder / backend.model_file)
    if backend.data_suffix:
        weights = source.with_suffix(backend.data_suffix)
        if not weights.is_file() or weights.is_symlink():
            raise NotFound(f"The model folder has no file {weights.name!r}.")
        copy_file(weights, (version_folder / backend.model_file).with_suffix(backend.data_suffix))
    sync_folder(version_folder)


def _copy_folder(source: Path, destination: Path, main: str | None, model_file: str) -> None:
    destination.mkdir(mode=0o755)
    with os.scandir(source) as found:
        entries = sorted(found, key=lambda item: item.name)
    for item in entries:
        path = Path(item.path)
        if item.is_symlink():
            continue
        if item.is_dir(follow_symlinks=False):
            if not item.name.startswith("."):
                _copy_folder(path, destination / item.name, None, model_file)
            continue
        if main is not None and item.name == main:
            copy_file(path, destination / model_file)
        elif item.is_file(follow_symlinks=False) and _is_data(path) and not (main and item.name == model_file):
            copy_file(path, destination / item.name)
    sync_folder(destination)


def _is_data(path: Path) -> bool:
    name = path.name.lower()
    if name.startswith(".") or name.endswith((".modelium.yaml", "modelium.yaml")) or ".so." in name:
        return False
    if path.suffix.lower() in _CODE_SUFFIXES:
        return False
    with path.open("rb") as file:
        return not file.read(4).startswith(_BINARY_MAGICS)


def copy_file(source: Path, destination: Path) -> None:
    """Copy the plain file ``source`` to the new file ``destination`` and fsync it; follows no link."""
    descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as reader:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ModeliumError(f"{source.name!r} is not a plain file.")
        with destination.open("xb") as writer, ThreadPoolExecutor(1) as beside:
            written: Future[None] | None = None
            while chunk := reader.read(_CHUNK_BYTES):
                writer.write(chunk)
                # What is copied goes to the disk while the rest is: 91 MB in 41 ms, not 69.
                if len(chunk) == _CHUNK_BYTES and (written is None or written.done()):
                    written = beside.submit(os.fdatasync, writer.fileno())
            if written is not None:
                written.result()
            writer.flush()
            os.fsync(writer.fileno())
            os.fchmod(writer.fileno(), 0o644)


def copy_files(files: dict[str, Path], folder: Path) -> None:
    """Copy plain files into the new folder ``folder`` under the names that ``files`` gives them; fsync everything."""
    folder.mkdir(mode=0o755)
    for name, source in files.items():
        copy_file(source, folder / name)
    sync_folder(folder)


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
