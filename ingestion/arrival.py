"""Arrival: a complete drop as a source reports it, before a byte of it is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

FileStat = tuple[str, int, int]
"""Path, size in bytes, mtime in nanoseconds."""


@dataclass(frozen=True)
class Arrival:
    """One complete drop: a file, or a folder that is one model.

    ``relative`` is the path below ``root`` (the watched folder, or the folder that a person named) and is what a
    deployment's name is made of. Everything below ``root`` is opened without following links.
    """

    uri: str
    path: Path
    size_bytes: int
    etag: str
    relative: str
    root: Path | None = None


def etag_of(files: Iterable[FileStat]) -> str:
    """Return what tells one content from the next without reading it: a digest of paths, sizes and mtimes."""
    text = json.dumps(sorted(files))
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:40]
