"""Store: immutable artifacts by content.

::

    <root>/blobs/ab/<sha256>      the bytes of every file, mode 0444
    <root>/trees/<sha256>/...     folders; their files are hard links to blobs
    <root>/manifests/<sha256>.json  the Artifact; written last, so an artifact exists when this does
    <root>/incoming-tmp/<id>/     one put at work; swept when its process is gone

Several processes may use one store. A put commits under a shared lock, a delete works under the exclusive one.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from ingestion.opening import LinkFound, check_name, link_refusal, open_entry, opened, readable, shown
from schemas.artifact import Artifact, ArtifactFile, ArtifactKind, manifest_sha256
from schemas.errors import LimitExceeded, ModelFailed, NotFound, StillChanging

CHUNK_BYTES = 4 << 20
MAX_FILES = 100_000
_FRESH_S = 60.0
"""A scratch folder younger than this is never swept: its owner may not hold the lock yet."""


class Store:
    """Content-addressed artifacts below ``root``, read-only once stored."""

    def __init__(self, root: Path, *, max_files: int = MAX_FILES) -> None:
        self.root = root.absolute()
        self._max_files = max_files
        for name in ("blobs", "trees", "manifests", "incoming-tmp"):
            _make_folder(self.root / name, 0o700 if name == "incoming-tmp" else 0o755)
        self._sweep_scratch()

    def put(
        self,
        path: Path,
        *,
        below: Path | None = None,
        skip: Callable[[str], bool] | None = None,
        take: bool = False,
    ) -> Artifact:
        """Store a file or folder and return its name; the same content twice is stored once.

        Args:
            below: Folder from which on no link is followed; without it only ``path`` itself and what it holds.
            skip: Told each path inside a folder; True leaves that file or subfolder out.
            take: The files are the caller's, who removes them next and lets nobody write to them: they are not copied
                but become the stored ones, where they lie on the store's file system.

        Raises:
            ModelFailed, NeedsInput: A link, special file, strange name; the hint says what to do.
            StillChanging: The content changed while it was read.
            StorageFull, LimitExceeded, NotFound: As named.
        """
        with self._scratch() as scratch, readable(path, ours=self.root):
            try:
                with opened(path, below=below) as fd:
                    read_in = self._take_in if take else self._copy_in
                    if stat.S_ISREG(os.fstat(fd).st_mode):
                        return self._commit_file(read_in(fd, "", path, scratch), scratch)
                    return self._commit_folder(tuple(self._walk(fd, path, scratch, skip, read_in)), scratch)
            except LinkFound as found:
                raise link_refusal(found, path, below=below) from None

    def put_files(self, files: Mapping[str, Path | bytes], *, below: Path | None = None) -> Artifact:
        """Store a folder put together from ``files``: path inside the folder to a file or to its bytes."""
        stored = []
        with self._scratch() as scratch:
            for name, source in files.items():
                check_name(name)
                if isinstance(source, bytes):
                    written = scratch / uuid4().hex
                    written.write_bytes(source)
                    source, limit = written, None
                else:
                    limit = below
                with readable(source, ours=self.root):
                    try:
                        with opened(source, below=limit) as fd:
                            stored.append(self._copy_in(fd, name, source, scratch))
                    except LinkFound as found:
                        raise link_refusal(found, source, below=limit) from None
            return self._commit_folder(tuple(stored), scratch)

    def has(self, sha256: str) -> bool:
        """Whether that artifact is stored."""
        return self._manifest(sha256).is_file()

    def artifact(self, sha256: str) -> Artifact:
        """Return the artifact of that name. Raises NotFound."""
        try:
            return Artifact.model_validate_json(self._manifest(sha256).read_bytes())
        except FileNotFoundError:
            raise NotFound(f"There is no artifact {sha256} in the store.", hint="It may have been removed.") from None

    def path(self, sha256: str) -> Path:
        """Return the stored, read-only file or folder; valid until the artifact is deleted. Raises NotFound."""
        return self._place(self.artifact(sha256))

    def all(self) -> Iterator[Artifact]:
        """Yield every artifact; what is deleted meanwhile is left out."""
        for manifest in sorted((self.root / "manifests").glob("*.json")):
            try:
                yield self.artifact(manifest.stem)
            except NotFound:
                continue

    def size_bytes(self) -> int:
        """Return the bytes of all stored files; content that several artifacts share counts once."""
        return sum(entry.stat().st_size for entry in self._blobs())

    def delete(self, sha256: str) -> int:
        """Remove an artifact and return the bytes freed; content that another artifact holds stays."""
        with self._scratch() as scratch, self._locked(fcntl.LOCK_EX):
            artifact = self.artifact(sha256)
            self._manifest(sha256).unlink()
            if artifact.kind is ArtifactKind.FILE:
                return self._free(sha256)
            # Renamed first: a crash half-way through must not leave half a tree under a whole name.
            self._tree(sha256).rename(scratch / "tree")
            shutil.rmtree(scratch / "tree")
            return sum(self._free(blob) for blob in {file.sha256 for file in artifact.files})

    def sweep(self) -> int:
        """Remove what crashes left behind and no artifact holds; return the bytes freed."""
        self._sweep_scratch()
        with self._scratch() as scratch, self._locked(fcntl.LOCK_EX):
            for tree in (self.root / "trees").iterdir():
                if not self.has(tree.name):
                    tree.rename(scratch / tree.name)
                    shutil.rmtree(scratch / tree.name)
            return sum(self._free(blob.name) for blob in list(self._blobs()))

    # Reading in

    def _walk(
        self,
        fd: int,
        path: Path,
        scratch: Path,
        skip: Callable[[str], bool] | None,
        read_in: Callable[[int, str, Path, Path], ArtifactFile],
        prefix: str = "",
    ) -> Iterator[ArtifactFile]:
        before = os.fstat(fd)
        count = 0
        for name in sorted(os.listdir(fd)):
            relative = prefix + name
            if skip is not None and skip(relative):
                continue
            check_name(relative)
            inner = open_entry(fd, name, path / name)
            try:
                if stat.S_ISDIR(os.fstat(inner).st_mode):
                    found = self._walk(inner, path / name, scratch, skip, read_in, relative + "/")
                else:
                    found = iter((read_in(inner, relative, path / name, scratch),))
                for file in found:
                    count += 1
                    if count > self._max_files:
                        raise LimitExceeded(
                            f"{shown(path)} holds more than {self._max_files} files.",
                            hint="Drop the model's own folder, not a folder around it.",
                            limit=self._max_files,
                        )
                    yield file
            finally:
                os.close(inner)
        if os.fstat(fd).st_mtime_ns != before.st_mtime_ns:
            raise _still_changing(path)

    def _copy_in(self, fd: int, relative: str, path: Path, scratch: Path) -> ArtifactFile:
        """Copy an open file into ``scratch``, named by its sha256; one chunk is in memory at a time."""
        before = os.fstat(fd)
        partial = scratch / "partial"
        digest = hashlib.sha256()
        size_bytes = 0
        buffer = memoryview(bytearray(min(CHUNK_BYTES, before.st_size + 1)))
        with os.fdopen(os.dup(fd), "rb", buffering=0) as source, partial.open("wb") as copy:
            while count := source.readinto(buffer):
                digest.update(buffer[:count])
                copy.write(buffer[:count])
                size_bytes += count
                if size_bytes > before.st_size:
                    break  # it grows under our hands; without this a growing file would be read for ever
            after = os.fstat(fd)
            if (after.st_size, after.st_mtime_ns) != (
                before.st_size,
                before.st_mtime_ns,
            ) or size_bytes != after.st_size:
                raise _still_changing(path)
            copy.flush()
            os.fchmod(copy.fileno(), 0o444)
            if not self._blob(digest.hexdigest()).exists():  # else this copy is thrown away
                os.fsync(copy.fileno())
        partial.replace(scratch / digest.hexdigest())
        return ArtifactFile(path=relative, sha256=digest.hexdigest(), size_bytes=size_bytes)

    def _take_in(self, fd: int, relative: str, path: Path, scratch: Path) -> ArtifactFile:
        """Link an open file into ``scratch``, named by its sha256; copy it where it can't become a stored one."""
        info = os.fstat(fd)
        mine = os.geteuid() in (0, info.st_uid)
        if not mine or info.st_nlink != 1 or info.st_dev != scratch.stat().st_dev:
            return self._copy_in(fd, relative, path, scratch)
        with os.fdopen(os.dup(fd), "rb", buffering=0) as source:
            name = hashlib.file_digest(source, "sha256").hexdigest()
        if not (scratch / name).exists():
            os.fchown(fd, os.geteuid(), os.getegid())
            os.fchmod(fd, 0o444)
            if not self._blob(name).exists():
                os.fsync(fd)
            # By the descriptor: what was hashed is what is linked, whatever stands under the path by now. Without a
            # folder's descriptor, which an absolute path needs none of, Python calls link(2), which follows nothing.
            os.link(f"/proc/self/fd/{fd}", scratch / name, src_dir_fd=fd, follow_symlinks=True)
        return ArtifactFile(path=relative, sha256=name, size_bytes=info.st_size)

    # Committing

    def _commit_file(self, file: ArtifactFile, scratch: Path) -> Artifact:
        artifact = Artifact(sha256=file.sha256, kind=ArtifactKind.FILE, size_bytes=file.size_bytes)
        with self._locked(fcntl.LOCK_SH):
            self._keep_blob(scratch / file.sha256)
            return self._keep_manifest(artifact, scratch)

    def _commit_folder(self, files: tuple[ArtifactFile, ...], scratch: Path) -> Artifact:
        if not files:
            raise ModelFailed("The folder holds no files.", hint="Copy the model's files into it and drop it again.")
        ordered = tuple(sorted(files, key=lambda file: file.path))
        size_bytes = sum(file.size_bytes for file in ordered)
        artifact = Artifact(
            sha256=manifest_sha256(ordered), kind=ArtifactKind.FOLDER, size_bytes=size_bytes, files=ordered
        )
        with self._locked(fcntl.LOCK_SH):
            for blob in {file.sha256 for file in ordered}:
                self._keep_blob(scratch / blob)
            if not self._tree(artifact.sha256).is_dir():
                self._build_tree(artifact, scratch / "tree")
            return self._keep_manifest(artifact, scratch)

    def _keep_blob(self, copied: Path) -> None:
        blob = self._blob(copied.name)
        _make_folder(blob.parent, 0o755)
        try:
            os.link(copied, blob)
        except FileExistsError:
            return
        _sync_folder(blob.parent)

    def _build_tree(self, artifact: Artifact, tree: Path) -> None:
        tree.mkdir()
        for file in artifact.files:
            place = tree / file.path
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(self._blob(file.sha256), place)
            except OSError as error:
                if error.errno != errno.EMLINK:
                    raise
                shutil.copyfile(self._blob(file.sha256), place)
                place.chmod(0o444)
        for folder, _, _ in os.walk(tree):
            Path(folder).chmod(0o755)
        try:
            tree.rename(self._tree(artifact.sha256))
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            shutil.rmtree(tree)  # another process was first, with the same content
        _sync_folder(self.root / "trees")

    def _keep_manifest(self, artifact: Artifact, scratch: Path) -> Artifact:
        if self.has(artifact.sha256):
            kept = self.artifact(artifact.sha256)
            # A text file that spells a stored folder's manifest has the folder's name. The folder wins: whoever made
            # the text learns nothing new, and nobody can keep a folder out of the store by storing its manifest first.
            if kept.kind is artifact.kind or kept.kind is ArtifactKind.FOLDER:
                return kept
        written = scratch / "manifest"
        with written.open("wb") as out:
            out.write(artifact.model_dump_json().encode())
            out.flush()
            os.fchmod(out.fileno(), 0o444)
            os.fsync(out.fileno())
        written.replace(self._manifest(artifact.sha256))
        _sync_folder(self.root / "manifests")
        return artifact

    # Places, locks, leftovers

    def _blob(self, sha256: str) -> Path:
        return self.root / "blobs" / sha256[:2] / sha256

    def _tree(self, sha256: str) -> Path:
        return self.root / "trees" / sha256

    def _manifest(self, sha256: str) -> Path:
        if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
            raise NotFound(f"{sha256!r} is not the name of an artifact.", hint="An artifact's name is its sha256.")
        return self.root / "manifests" / f"{sha256}.json"

    def _place(self, artifact: Artifact) -> Path:
        return self._blob(artifact.sha256) if artifact.kind is ArtifactKind.FILE else self._tree(artifact.sha256)

    def _blobs(self) -> Iterator[Path]:
        for folder in (self.root / "blobs").iterdir():
            yield from folder.iterdir()

    def _free(self, blob_sha256: str) -> int:
        """Remove a blob that neither a tree nor a manifest holds; the exclusive lock is held."""
        blob = self._blob(blob_sha256)
        try:
            info = blob.stat()
        except FileNotFoundError:
            return 0
        held = info.st_nlink > 1 or (self.has(blob_sha256) and self.artifact(blob_sha256).kind is ArtifactKind.FILE)
        if held:
            return 0
        blob.unlink()
        return info.st_size

    @contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        with (self.root / "lock").open("ab") as lock:
            fcntl.flock(lock, how)
            yield

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        """Yield a private folder on the store's file system; a lock tells the living from leftovers."""
        folder = self.root / "incoming-tmp" / uuid4().hex
        folder.mkdir(mode=0o700)
        try:
            with (folder / ".lock").open("wb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _sweep_scratch(self) -> None:
        for folder in (self.root / "incoming-tmp").iterdir():
            try:
                if time.time() - folder.stat().st_mtime < _FRESH_S:
                    continue
                with (folder / ".lock").open("ab") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except FileNotFoundError:
                continue
            except BlockingIOError:
                continue
            shutil.rmtree(folder, ignore_errors=True)


def _still_changing(path: Path) -> StillChanging:
    return StillChanging(f"{shown(path)} changed while it was read.", hint="It is taken once its writer has finished.")


def _make_folder(folder: Path, mode: int) -> None:
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(mode)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
