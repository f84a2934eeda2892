"""Find a model's licence in its README's front matter or its LICENSE file."""

from __future__ import annotations

import re
from pathlib import Path

from analyzer.draft import Draft
from schemas.descriptor import KnownBy

_READ_BYTES = 64 << 10
_FRONT = re.compile(r"^(license|license_name):[ \t]*[\"']?([A-Za-z0-9][\w.+ -]{0,80}?)[\"']?[ \t]*$", re.M)
_TEXTS: tuple[tuple[str, str], ...] = (
    ("Apache License", "apache-2.0"),
    ("MIT License", "mit"),
    ("Permission is hereby granted, free of charge", "mit"),
    ("GNU AFFERO GENERAL PUBLIC LICENSE", "agpl-3.0"),
    ("GNU LESSER GENERAL PUBLIC LICENSE", "lgpl"),
    ("GNU GENERAL PUBLIC LICENSE", "gpl"),
    ("BSD 3-Clause", "bsd-3-clause"),
    ("BSD 2-Clause", "bsd-2-clause"),
    ("LLAMA", "llama"),
    ("Creative Commons Attribution-NonCommercial", "cc-by-nc"),
    ("Creative Commons Attribution", "cc-by"),
)


def read_text(path: Path, limit: int = _READ_BYTES) -> str:
    """Return the first ``limit`` bytes of a plain file as text, '' when there is none."""
    if not path.is_file() or path.is_symlink():
        return ""
    with path.open("rb") as handle:
        return handle.read(limit).decode("utf-8", "replace")


def read_licence(draft: Draft, folder: Path) -> None:
    """Record the licence that the folder's README or LICENSE states."""
    readme = read_text(folder / "README.md")
    if readme.startswith("---"):
        front = readme[3:].partition("\n---")[0]
        stated = dict(_FRONT.findall(front))
        name = stated.get("license")
        if name == "other":
            name = stated.get("license_name", name)
        if name:
            draft.know(license=name)
            return
    for name in ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING"):
        text = read_text(folder / name, 4096)
        for words, licence in _TEXTS:
            if words in text:
                draft.know(KnownBy.GUESS, license=licence)
                return
