"""Store: immutable artifacts by content, on this machine alone or in front of a bucket that several share.

With a bucket the folder here is a cache: what is put is in the bucket before it is an artifact here, and what is not
here is fetched. Bytes are looked at on their way in: nothing is stored under a name that is not its own.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from ingestion.artifact_folder import ArtifactFolder, make_folder, no_artifact
from ingestion.copying import Copying
from ingestion.opening import LinkFound, check_name, link_refusal, opened, readable
from ingestion.shared_artifacts import SharedArtifacts
from schemas.artifact import Artifact, ArtifactFile, ArtifactKind, blobs_of, manifest_sha256
from schemas.errors import ModelFailed, NotFound

MAX_FILES = 100_000
_FETCHES_AT_ONCE = 4


class Store:
    """Content-addressed artifacts below ``root``, read-only once stored."""

    def __init__(self, root: Path, *, max_files: int = MAX_FILES, shared: SharedArtifacts | None = None) -> None:
        self._folder = ArtifactFolder(root)
        self.root = self._folder.root
        self.shared = shared
        self._max_files = max_files

    def put(
        self,
        path: Path,
        *,
        below: Path | None = None,
        skip: Callable[[str], bool] | None = None,
        take: bool = False,
        before_upload: Callable[[], None] | None = None,
    ) -> Artifact:
        """Store a file or folder and return its name; the same content twice is stored once.

        Args:
            below: Folder from which on no link is followed; without it only ``path`` itself and what it holds.
            skip: Told each path inside a folder; True leaves that file or subfolder out.
            take: The files are the caller's, who removes them next and lets nobody write to them: they are not copied
                but become the stored ones, where they lie on the store's file system.
            before_upload: Called when what is left to do is to wait for the bucket; never where there is none.

        Raises:
            ModelFailed, NeedsInput: A link, special file, strange name; the hint says what to do.
            StillChanging: The content changed while it was read.
            StorageFull, StoreUnavailable, LimitExceeded, NotFound: As named.
        """
        with self._folder.scratch() as scratch, readable(path, ours=self.root):
            copying = self._copying(scratch, take=take)
            try:
                with opened(path, below=below) as fd:
                    if stat.S_ISREG(os.fstat(fd).st_mode):
                        artifact = _of_file(copying.file(fd, "", path))
                    else:
                        artifact = _of_folder(tuple(copying.folder(fd, path, skip)))
            except LinkFound as found:
                raise link_refusal(found, path, below=below) from None
            if self.shared is not None and before_upload is not None:
                before_upload()
            return self._keep(artifact, scratch)

    def put_files(self, files: Mapping[str, Path | bytes], *, below: Path | None = None) -> Artifact:
        """Store a folder put together from ``files``: path inside the folder to a file or to its bytes."""
        stored = []
        with self._folder.scratch() as scratch:
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
                            stored.append(self._copying(scratch).file(fd, name, source))
                    except LinkFound as found:
                        raise link_refusal(found, source, below=limit) from None
            return self._keep(_of_folder(tuple(stored)), scratch)

    def has(self, sha256: str) -> bool:
        """Whether that artifact is stored, here or in the bucket."""
        return self._folder.has(sha256) or (self.shared is not None and self.shared.has(sha256))

    def renew(self, sha256: str) -> bool:
        """Whether that artifact is stored, and stays so for the next hours whoever collects, on whatever machine."""
        if self.shared is None:
            return self._folder.has(sha256)
        if self.shared.renew(sha256):
            return True
        if not self._folder.has(sha256):
            return False
        artifact = self._folder.artifact(sha256)  # stored before there was a bucket, or lost there
        self.shared.share(artifact, {blob: self._folder.blob(blob) for blob in blobs_of(artifact)})
        return True

    def artifact(self, sha256: str) -> Artifact:
        """Return the artifact of that name. Raises NotFound."""
        if self.shared is not None and not self._folder.has(sha256):
            found = self.shared.find(sha256)
            if found is None:
                raise no_artifact(sha256)
            return found[0]
        return self._folder.artifact(sha256)

    def path(self, sha256: str) -> Path:
        """Return the stored, read-only file or folder, fetched if need be; valid until the artifact is deleted.

        Raises:
            NotFound, StorageFull, StoreUnavailable: As named.
            CorruptObject: What the bucket holds is not what the name says; nothing of it is stored.
        """
        if self.shared is not None and not self._folder.has(sha256):
            self._fetch(sha256, self.shared)
        return self._folder.path(sha256)

    def all(self) -> Iterator[Artifact]:
        """Yield every artifact, here or in the bucket; what is deleted meanwhile is left out."""
        names = self._folder.names()
        if self.shared is not None:
            names.update(self.shared.names())
        with ThreadPoolExecutor(_FETCHES_AT_ONCE) as pool:
            yield from filter(None, pool.map(self._artifact_if_any, sorted(names)))

    def _artifact_if_any(self, sha256: str) -> Artifact | None:
        try:
            return self.artifact(sha256)
        except NotFound:
            return None

    def size_bytes(self) -> int:
        """Return the bytes of all files stored here; content that several artifacts share counts once."""
        return self._folder.size_bytes()

    def delete(self, sha256: str) -> int:
        """Remove an artifact and return the bytes freed here; content that another artifact holds stays.

        In the bucket its bytes are freed by :meth:`SharedArtifacts.sweep`.
        """
        if self.shared is not None:
            if not self.has(sha256):
                raise no_artifact(sha256)
            self.shared.delete(sha256)
            return self._folder.remove(sha256) if self._folder.has(sha256) else 0
        return self._folder.remove(sha256)

    def evict(self, sha256: str) -> int:
        """Remove the copy here of what the bucket has; return the bytes freed."""
        if self.shared is None or not self._folder.has(sha256) or not self.shared.has(sha256):
            return 0
        return self._folder.remove(sha256)

    def sweep(self) -> int:
        """Remove what crashes left behind here and no artifact holds; return the bytes freed."""
        return self._folder.sweep()

    def _fetch(self, sha256: str, shared: SharedArtifacts) -> None:
        """Fetch an artifact into the store; of several who want it, one does and the others wait."""
        with self._fetching(sha256), self._folder.scratch() as scratch, readable(Path(sha256), ours=self.root):
            if self._folder.has(sha256):
                return
            found = shared.find(sha256)
            if found is None:
                raise no_artifact(sha256)
            artifact, _ = found
            sizes = {file.sha256: file.size_bytes for file in artifact.files} or {sha256: artifact.size_bytes}

            def bring(blob: str) -> None:
                try:
                    os.link(self._folder.blob(blob), scratch / blob)  # held by another artifact here
                except OSError:
                    shared.fetch(blob, sizes[blob], scratch / blob)

            with ThreadPoolExecutor(_FETCHES_AT_ONCE) as pool:
                for _ in pool.map(bring, sizes):
                    pass
            self._folder.commit(artifact, scratch)

    @contextmanager
    def _fetching(self, sha256: str) -> Iterator[None]:
        make_folder(self.root / "fetching", 0o755)
        with (self.root / "fetching" / sha256[:2]).open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _copying(self, scratch: Path, *, take: bool = False) -> Copying:
        return Copying(scratch, self._max_files, lambda sha256: self._folder.blob(sha256).exists(), take)

    def _keep(self, artifact: Artifact, scratch: Path) -> Artifact:
        """Make an artifact of what was copied into ``scratch``, in the bucket first."""
        if self.shared is not None:
            there = self.shared.share(artifact, {blob: scratch / blob for blob in blobs_of(artifact)})
            if there.kind is not artifact.kind:
                return there
        return self._folder.commit(artifact, scratch)


def _of_file(file: ArtifactFile) -> Artifact:
    return Artifact(sha256=file.sha256, kind=ArtifactKind.FILE, size_bytes=file.size_bytes)


def _of_folder(files: tuple[ArtifactFile, ...]) -> Artifact:
    if not files:
        raise ModelFailed("The folder holds no files.", hint="Copy the model's files into it and drop it again.")
    ordered = tuple(sorted(files, key=lambda file: file.path))
    size_bytes = sum(file.size_bytes for file in ordered)
    return Artifact(sha256=manifest_sha256(ordered), kind=ArtifactKind.FOLDER, size_bytes=size_bytes, files=ordered)
