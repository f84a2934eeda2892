"""Artifact: immutable bytes named by sha256."""

from __future__ import annotations

import hashlib
from enum import StrEnum

from pydantic import Field

from schemas.document import Document

Sha256 = str


class ArtifactKind(StrEnum):
    """Whether the bytes are one file or a folder of files."""

    FILE = "file"
    FOLDER = "folder"


class ArtifactFile(Document):
    """One file of a folder artifact."""

    path: str = Field(description="Relative POSIX path, no leading slash, no '..'")
    sha256: Sha256
    size_bytes: int = Field(ge=0)


class Artifact(Document):
    """Immutable bytes. A folder is named by the sha256 of its manifest, see :func:`manifest_sha256`."""

    sha256: Sha256 = Field(pattern=r"^[0-9a-f]{64}$")
    kind: ArtifactKind
    size_bytes: int = Field(ge=0)
    files: tuple[ArtifactFile, ...] = Field(
        default=(), description="Files of a folder, sorted by path; empty for a file"
    )


def blobs_of(artifact: Artifact) -> set[Sha256]:
    """Return the sha256 of every file that an artifact consists of."""
    return {artifact.sha256} if artifact.kind is ArtifactKind.FILE else {file.sha256 for file in artifact.files}


def manifest_sha256(files: tuple[ArtifactFile, ...]) -> Sha256:
    """Return a folder's name: sha256 over its lines ``<sha256>  <path>\\n`` sorted by path (as sha256sum writes)."""
    lines = "".join(f"{f.sha256}  {f.path}\n" for f in sorted(files, key=lambda f: f.path))
    return hashlib.sha256(lines.encode()).hexdigest()
