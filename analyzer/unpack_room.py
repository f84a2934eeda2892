"""Room: where an archive's members are written, within bounds and below one folder only."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analyzer.draft import clean
from analyzer.zip_layout import unsafe_path
from schemas.errors import LimitExceeded, Quarantined

_CHUNK = 1 << 20
_JUNK_FOLDERS = frozenset({"__MACOSX", ".git", "__pycache__", ".ipynb_checkpoints"})
_JUNK_FILES = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})
_MAX_NAME_BYTES = 255


def is_junk(name: str) -> bool:
    """Whether a member is what a desktop or a version control leaves in archives, and no part of a model."""
    parts = name.split("/")
    return bool(_JUNK_FOLDERS.intersection(parts)) or parts[-1] in _JUNK_FILES or parts[-1].startswith("._")


@dataclass
class Room:
    """What may still be written; counts over all layers of one archive together."""

    max_bytes: int
    max_files: int
    max_depth: int
    written: int = 0
    files: int = 0
    skipped: int = 0
    names: list[str] = field(default_factory=list)
    _taken: set[str] = field(default_factory=set)

    @property
    def left(self) -> int:
        """Bytes that may still be written."""
        return max(0, self.max_bytes - self.written)

    def write(self, folder: Path, name: str, content: Any, *, size_bytes: int | None = None) -> int | None:
        """Write ``content`` (an object with ``read``) as ``folder/name``; return its CRC-32, None when it was skipped.

        Raises Quarantined for a path that leaves the folder or is there already, LimitExceeded beyond the bounds.
        """
        while name.startswith("./"):
            name = name[2:]
        reason = unsafe_path(name)
        if reason is not None:
            raise Quarantined(
                f"The path of an archive member {reason}: {clean(name, 120)!r}.", hint="Pack it again from its folder."
            )
        if not name or is_junk(name):
            self.skipped += 1
            return None
        self._check(folder, name, size_bytes)
        path = folder / name
        crc = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as out:
                while part := content.read(_CHUNK):
                    self.written += len(part)
                    if self.written > self.max_bytes:
                        raise self._full()
                    crc = zlib.crc32(part, crc)
                    out.write(part)
        except (FileExistsError, IsADirectoryError, NotADirectoryError):
            raise self._twice(name) from None
        self.files += 1
        self.names.append(clean(name, 255))
        return crc

    def _check(self, folder: Path, name: str, size_bytes: int | None) -> None:
        parts = name.split("/")
        if len(parts) > self.max_depth:
            raise LimitExceeded(
                f"This archive is nested {len(parts)} folders deep; {self.max_depth} are unpacked.",
                hint="Pack the model's own folder.",
                limit=self.max_depth,
                actual=len(parts),
            )
        if not name.isprintable() or any(len(part.encode("utf-8", "replace")) > _MAX_NAME_BYTES for part in parts):
            raise Quarantined(
                f"A member of this archive has a name that no file system takes: {clean(name, 80)!r}.",
                hint="Rename it and pack it again.",
            )
        if self.files >= self.max_files:
            raise LimitExceeded(
                f"This archive holds more than {self.max_files} files.",
                hint="Pack the model's own folder, without data sets.",
                limit=self.max_files,
                actual=self.files + 1,
            )
        if size_bytes is not None and size_bytes > self.left:
            raise self._full(self.written + size_bytes)
        # Without regard to case, so that what is judged here is what any file system holds.
        key = f"{folder}/{name.lower()}"
        if key in self._taken:
            raise self._twice(name)
        self._taken.add(key)

    def _full(self, actual: int | None = None) -> LimitExceeded:
        return LimitExceeded(
            f"This archive unpacks to more than {self.max_bytes / (1 << 30):.1f} GiB, which is all the room there is.",
            hint="Drop the model without an archive around it, or raise step_workspace_bytes "
            "(MODELIUM_STEP_WORKSPACE_BYTES).",
            limit=self.max_bytes,
            actual=actual or self.written,
        )

    def _twice(self, name: str) -> Quarantined:
        return Quarantined(f"Two members of this archive have one name: {clean(name, 120)!r}.", hint="Pack it again.")
