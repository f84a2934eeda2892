"""TorchScript's own code in an archive: a language without imports, whose operators can reach files all the same."""

from __future__ import annotations

import re

from analyzer.pickle_scan import printable
from schemas.descriptor import SecurityFinding, Severity

MAX_CODE_BYTES = 16 << 20
_REACHES_FILES = re.compile(
    rb"\b(?:torch|ops\s*\.\s*aten)\s*\.\s*(from_file|save|load)\s*\(|\bops\s*\.\s*image\s*\.\s*(read_file|write_file)\s*\("
)


def script_findings(source: bytes, where: str) -> list[SecurityFinding]:
    """Look for operators that read or write files; ``from_file`` maps any path, and makes the file it is told to."""
    found = _REACHES_FILES.search(source)
    if found is None:
        return []
    name = (found[1] or found[2]).decode()
    return [
        SecurityFinding(
            code="torchscript-files",
            severity=Severity.DANGER,
            message=f"The code of this TorchScript archive calls {name}, which reads or writes files by their path.",
            where=printable(where)[:450],
            subject=name,
        )
    ]
