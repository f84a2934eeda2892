"""SharedArtifacts: the artifacts of a bucket that several machines put into, read from and collect.

::

    <prefix>/blobs/ab/<sha256>        the bytes of every file
    <prefix>/manifests/<sha256>.json  the Artifact; written last, so an artifact exists when this does

S3 has no locks. What keeps a collector from taking what another machine is about to rely on is age: it takes only what
was last written ``GRACE_S`` ago or longer, by a look right before, and whoever relies on something older than half of
that writes it again first.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from ingestion.bucket import Bucket, Seen
from ingestion.opening import check_name
from schemas.artifact import Artifact, ArtifactKind, blobs_of, manifest_sha256
from schemas.errors import CorruptObject, ModelFailed, NotFound

GRACE_S = 24 * 3600.0
_AT_ONCE = 8
_SHA256 = re.compile("[0-9a-f]{64}")
_MOST_MANIFEST_BYTES = 256 << 20
_HINT = "Remove {} from the bucket and retry: a step's output is made again, a dropped model has to be dropped again."


class SharedArtifacts:
    """Artifacts in ``bucket``. Besides what each says, every method raises StoreUnavailable."""

    def __init__(self, bucket: Bucket, *, grace_s: float = GRACE_S) -> None:
        self.bucket = bucket
        self._grace_s = grace_s

    def find(self, sha256: str) -> tuple[Artifact, Seen] | None:
        """Return an artifact and its manifest as seen, None when there is none. Raises CorruptObject."""
        found = self.bucket.read(_manifest(sha256), at_most_bytes=_MOST_MANIFEST_BYTES)
        if found is None:
            return None
        content, seen = found
        return self._checked(sha256, content), seen

    def has(self, sha256: str) -> bool:
        """Whether that artifact is in the bucket."""
        return self.bucket.look(_manifest(sha256)) is not None

    def share(self, artifact: Artifact, blobs: Mapping[str, Path]) -> Artifact:
        """Put an artifact, whose blobs lie at ``blobs`` by sha256, into the bucket; return what has its name there now.

        A folder wins over the text that spells its manifest, as it does in the store.
        """
        try:
            found = self.find(artifact.sha256)
        except CorruptObject:
            found = None
        if found is not None:
            there, seen = found
            if there == artifact or (there.kind, artifact.kind) == (ArtifactKind.FOLDER, ArtifactKind.FILE):
                if self._is_ageing(seen):
                    self._write(there)
                return there
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for _ in pool.map(self._share_blob, blobs.keys(), blobs.values()):
                pass
        self._write(artifact)
        return artifact

    def renew(self, sha256: str) -> bool:
        """Whether that artifact is in the bucket, and no collector takes it within the next hours."""
        seen = self.bucket.look(_manifest(sha256))
        if seen is None or not self._is_ageing(seen):
            return seen is not None
        found = self.find(sha256)
        if found is not None:
            self._write(found[0])
        return found is not None

    def restore(self, artifact: Artifact) -> None:
        """Take back a delete; to be done before the next sweep."""
        self._write(artifact)

    def fetch(self, file_sha256: str, size_bytes: int, place: Path) -> None:
        """Write the bytes of one file to ``place``. Raises NotFound, and CorruptObject for any other bytes."""
        key = _blob(file_sha256)
        chunks = self.bucket.chunks(key)
        if chunks is None:
            raise NotFound(
                f"{self.bucket.url}/{key} is not there any more, though an artifact that holds it is.",
                hint=_HINT.format("that artifact's manifest"),
            )
        digest, count = hashlib.sha256(), 0
        with place.open("wb") as out:
            for chunk in chunks:
                count += len(chunk)
                if count > size_bytes:
                    break
                digest.update(chunk)
                out.write(chunk)
            out.flush()
            os.fchmod(out.fileno(), 0o444)
            os.fsync(out.fileno())
        if count != size_bytes or digest.hexdigest() != file_sha256:
            place.unlink()
            raise CorruptObject(
                f"{self.bucket.url}/{key} does not hold the bytes it is named after, and is not used.",
                hint=_HINT.format("that object and the manifest of each artifact that holds it"),
            )

    def names(self) -> Iterator[str]:
        """Yield the sha256 of every artifact."""
        return map(_name, self.bucket.listed("manifests"))

    def is_collectable(self, sha256: str) -> bool:
        """Whether a collector may take it: it is not there, or nobody has relied on it for long."""
        return self._is_old(self.bucket.look(_manifest(sha256)))

    def delete(self, sha256: str) -> None:
        """Remove an artifact; its bytes are freed by the next sweep that finds them old enough."""
        self.bucket.delete(_manifest(sha256))

    def sweep(self) -> int:
        """Remove old blobs that no artifact holds, and parts of broken uploads; return the bytes freed."""
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            found = list(pool.map(self.find, self.names()))
        held = set().union(*(blobs_of(artifact) for artifact, _ in filter(None, found)))
        freed = 0
        for seen in self.bucket.listed("blobs"):
            name = _name(seen)
            if name in held or not _SHA256.fullmatch(name):
                continue
            if self._is_old(seen) and self._is_old(self.bucket.look(seen.key)):
                self.bucket.delete(seen.key)
                freed += seen.size_bytes
        self.bucket.end_uploads(older_than_s=self._grace_s)
        return freed

    def _share_blob(self, sha256: str, path: Path) -> None:
        seen = self.bucket.look(_blob(sha256))
        if seen is None or seen.size_bytes != path.stat().st_size or self._is_ageing(seen):
            self.bucket.upload(_blob(sha256), path)

    def _write(self, artifact: Artifact) -> None:
        self.bucket.write(_manifest(artifact.sha256), artifact.model_dump_json().encode())

    def _is_ageing(self, seen: Seen) -> bool:
        return seen.age_s > self._grace_s / 2

    def _is_old(self, seen: Seen | None) -> bool:
        return seen is None or seen.age_s >= self._grace_s

    def _checked(self, sha256: str, content: bytes) -> Artifact:
        try:
            artifact = Artifact.model_validate_json(content)
        except ValidationError:
            artifact = None
        if artifact is None or artifact.sha256 != sha256 or not _is_whole(artifact):
            key = f"{self.bucket.url}/{_manifest(sha256)}"
            raise CorruptObject(
                f"{key} is not the manifest it is named after, and is not used.", hint=_HINT.format("that object")
            )
        return artifact


def _name(seen: Seen) -> str:
    return PurePosixPath(seen.key).name.removesuffix(".json")


def _is_whole(artifact: Artifact) -> bool:
    """Whether a manifest fits its name and can be built below a folder without leading out of it."""
    if artifact.kind is ArtifactKind.FILE:
        return not artifact.files
    try:
        for file in artifact.files:
            check_name(file.path)
    except ModelFailed:
        return False
    paths = {file.path for file in artifact.files}
    stays_inside = all(not {"", ".", ".."} & set(path.split("/")) for path in paths)
    named = all(_SHA256.fullmatch(file.sha256) for file in artifact.files)
    whole = 0 < len(paths) == len(artifact.files)
    return stays_inside and named and whole and manifest_sha256(artifact.files) == artifact.sha256


def _blob(sha256: str) -> str:
    return f"blobs/{sha256[:2]}/{sha256}"


def _manifest(sha256: str) -> str:
    return f"manifests/{sha256}.json"
