"""Room: is there enough disk for a drop and everything that is made of it, asked before a byte is stored."""

from __future__ import annotations

import os
from pathlib import Path

from ingestion.opening import shown
from schemas.errors import StorageFull

# In sizes of the drop, all in fp32 unless said otherwise.
STORE_FACTOR = 4.5
"""The copy of the drop, the exported graph, the optimised graph, the int8 graph (a quarter), and reference outputs."""
WORKSPACE_FACTOR = 2.0
"""The largest step at work: what it exports, and the exporter's scratch files beside it."""
REPOSITORY_FACTOR = 1.0
"""The winner."""
FLOOR_BYTES = 256 << 20
"""Kept free in any case: samples, reports, the database, and what other programs write meanwhile."""


def needed_bytes(size_bytes: int) -> int:
    """Return the room that a drop of ``size_bytes`` needs in all."""
    return int(size_bytes * (STORE_FACTOR + WORKSPACE_FACTOR + REPOSITORY_FACTOR)) + FLOOR_BYTES


def check_room(size_bytes: int, store: Path, workspaces: Path | None = None, repository: Path | None = None) -> None:
    """Return when every file system concerned has room for a drop of ``size_bytes``; the folders must exist.

    Raises:
        StorageFull: One has not; the message carries the numbers.
    """
    needs: dict[int, tuple[Path, float]] = {}
    for folder, factor in (
        (store, STORE_FACTOR),
        (workspaces or store, WORKSPACE_FACTOR),
        (repository or store, REPOSITORY_FACTOR),
    ):
        device = folder.stat().st_dev
        first, so_far = needs.get(device, (folder, 0.0))
        needs[device] = (first, so_far + factor)
    for folder, factor in needs.values():
        needed = int(size_bytes * factor) + FLOOR_BYTES
        space = os.statvfs(folder)
        free = space.f_bavail * space.f_frsize
        if free < needed:
            raise StorageFull(
                f"A model of {_human(size_bytes)} needs {_human(needed)} for its copy, its candidates and its "
                f"deployment; {shown(folder)} has {_human(free)} free.",
                hint="Free some space (`modelium gc` removes what nothing needs any more); it is then tried again.",
                needed_bytes=needed,
                free_bytes=free,
                size_bytes=size_bytes,
            )


def _human(size_bytes: int) -> str:
    size = float(size_bytes)
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
