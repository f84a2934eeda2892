"""ArtifactFolder: artifacts of a store in a folder of this machine.

::

    <root>/blobs/ab/<sha256>      the bytes of every file, mode 0444
    <root>/trees/<sha256>/...     folders; their files are hard links to blobs
    <root>/manifests/<sha256>.json  the Artifact; written last, so an artifact exists when this does
    <root>/incoming-tmp/<id>/     one put at work; swept when its process is gone

Several processes may use one folder. A commit happens under a shared lock, a removal under the exclusive one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from schemas.artifact import Artifact, ArtifactKind, blobs_of
from schemas.errors import NotFound

_FRESH_S = 60.0
"""A scratch folder younger than this is never swept: its owner may not hold the lock yet."""


class ArtifactFolder:
    """Content-addressed artifacts below ``root``, read-only once committed."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        for name in ("blobs", "trees", "manifests", "incoming-tmp"):
            make_folder(self.root / name, 0o700 if name == "incoming-tmp" else 0o755)
        self._sweep_scratch()

    def has(self, sha256: str) -> bool:
        """Whether that artifact is here."""
        return self._manifest(sha256).is_file()

    def artifact(self, sha256: str) -> Artifact:
        """Return the artifact of that name. Raises NotFound."""
        try:
            return Artifact.model_validate_json(self._manifest(sha256).read_bytes())
        except FileNotFoundError:
            raise no_artifact(sha256) from None

    def path(self, sha256: str) -> Path:
        """Return the file or folder; valid until the artifact is removed. Raises NotFound."""
        return self.blob(sha256) if self.artifact(sha256).kind is ArtifactKind.FILE else self._tree(sha256)

    def names(self) -> set[str]:
        """Return the sha256 of every artifact."""
        return {manifest.stem for manifest in (self.root / "manifests").glob("*.json")}

    def size_bytes(self) -> int:
        """Return the bytes of all files; content that several artifacts share counts once."""
        return sum(entry.stat().st_size for entry in self._blobs())

    def blob(self, sha256: str) -> Path:
        """Return where the bytes of a file are, if they are here."""
        return self.root / "blobs" / sha256[:2] / sha256

    def commit(self, artifact: Artifact, scratch: Path) -> Artifact:
        """Make an artifact of files that lie in ``scratch`` by their sha256; return what has its name."""
        with self._locked(fcntl.LOCK_SH):
            for blob in blobs_of(artifact):
                self._keep_blob(scratch / blob)
            if artifact.kind is ArtifactKind.FOLDER and not self._tree(artifact.sha256).is_dir():
                self._build_tree(artifact, scratch / "tree")
            return self._keep_manifest(artifact, scratch)

    def remove(self, sha256: str) -> int:
        """Remove an artifact and return the bytes freed; content that another artifact holds stays."""
        with self.scratch() as scratch, self._locked(fcntl.LOCK_EX):
            artifact = self.artifact(sha256)
            self._manifest(sha256).unlink()
            if artifact.kind is ArtifactKind.FILE:
                return self._free(sha256)
            # Renamed first: a crash half-way through must not leave half a tree under a whole name.
            self._tree(sha256).rename(scratch / "tree")
            shutil.rmtree(scratch / "tree")
            return sum(self._free(blob) for blob in blobs_of(artifact))

    def sweep(self) -> int:
        """Remove what crashes left behind and no artifact holds; return the bytes freed."""
        self._sweep_scratch()
        with self.scratch() as scratch, self._locked(fcntl.LOCK_EX):
            for tree in (self.root / "trees").iterdir():
                if not self.has(tree.name):
                    tree.rename(scratch / tree.name)
                    shutil.rmtree(scratch / tree.name)
            return sum(self._free(blob.name) for blob in list(self._blobs()))

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Yield a private folder on the store's file system; a lock tells the living from leftovers."""
        folder = self.root / "incoming-tmp" / uuid4().hex
        folder.mkdir(mode=0o700)
        try:
            with (folder / ".lock").open("wb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _keep_blob(self, copied: Path) -> None:
        blob = self.blob(copied.name)
        make_folder(blob.parent, 0o755)
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
                os.link(self.blob(file.sha256), place)
            except OSError as error:
                if error.errno != errno.EMLINK:
                    raise
                shutil.copyfile(self.blob(file.sha256), place)
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

    def _tree(self, sha256: str) -> Path:
        return self.root / "trees" / sha256

    def _manifest(self, sha256: str) -> Path:
        if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
            raise NotFound(f"{sha256!r} is not the name of an artifact.", hint="An artifact's name is its sha256.")
        return self.root / "manifests" / f"{sha256}.json"

    def _blobs(self) -> Iterator[Path]:
        for folder in (self.root / "blobs").iterdir():
            yield from folder.iterdir()

    def _free(self, blob_sha256: str) -> int:
        """Remove a blob that neither a tree nor a manifest holds; the exclusive lock is held."""
        blob = self.blob(blob_sha256)
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


def no_artifact(sha256: str) -> NotFound:
    """Return the error for a name that nothing has."""
    return NotFound(f"There is no artifact {sha256} in the store.", hint="It may have been removed.")


def make_folder(folder: Path, mode: int) -> None:
    """Make a folder with that mode, whatever the umask; one that is there stays as it is."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(mode)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
