"""Puts our packages where pods can see them, so that a step runs the worker's code whatever the image holds."""

from __future__ import annotations

import compileall
import hashlib
import secrets
import shutil
from pathlib import Path

from executor.inside import packages
from executor.workspace import remove_tree


def place_packages(parent: Path) -> Path:
    """Return a folder below ``parent`` with the packages that a step needs, named by their content; made once."""
    shown = [package for package, _ in packages()]
    source = shown[0].parent
    digest = hashlib.sha256()
    files = sorted(
        path.relative_to(source)
        for package in shown
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    )
    for file in files:
        content = (source / file).read_bytes()
        digest.update(f"{file}\0{len(content)}\0".encode() + content)
    folder = parent / f"packages-{digest.hexdigest()[:16]}"
    if folder.exists():
        return folder
    made = parent / f"{folder.name}.{secrets.token_hex(6)}"
    for file in files:
        (made / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / file, made / file)
    # A pod sees them read-only and could keep no bytecode of its own.
    compileall.compile_dir(str(made), quiet=2, ddir="")
    for path in (made, *made.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    try:
        made.rename(folder)
    except OSError:  # another worker was quicker
        remove_tree(made)
    return folder
