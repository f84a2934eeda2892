"""scan: everything in a file or folder that could do harm, told from bytes alone."""

from __future__ import annotations

from pathlib import Path

from analyzer.content_scan import ContentScan
from analyzer.folder import files_of
from analyzer.formats import recognise
from analyzer.skops_schema import skops_findings
from schemas.descriptor import SecurityFinding
from schemas.errors import LimitExceeded, ModeliumError
from schemas.sidecar import Sidecar


def scan(
    path: Path,
    *,
    allowed_globals: tuple[str, ...] = (),
    sidecar: Sidecar | None = None,
    code: Path | None = None,
) -> tuple[SecurityFinding, ...]:
    """Scan ``path`` (a file, or a folder with all its members) and the ``code`` folder; the worst comes first.

    No finding but ``info`` means clean: every pickle was followed to its end and asks for allowed names alone.
    ``allowed_globals`` lifts what is merely unknown, never what is dangerous. That a joblib file is clean holds for
    joblib's own loader. Raises nothing for hostile content.
    """
    found = ContentScan(frozenset(allowed_globals))
    try:
        if path.is_dir() and not path.is_symlink():
            named = sidecar.module.file if sidecar is not None and sidecar.module is not None else None
            found.folder(path, frozenset({named} if named else ()))
        else:
            found.file(path)
        _skops(found, path, frozenset(allowed_globals))
        if code is not None and code != path:
            found.code_folder(code)
    except LimitExceeded as error:
        found.limit(error)
    return found.result()


def _skops(found: ContentScan, path: Path, allowed: frozenset[str]) -> None:
    """Judge the classes that skops files name; what can't be read of one is for its reader to say."""
    for where, file in files_of(path) if path.is_dir() else [("", path)]:
        try:
            with file.open("rb") as handle:
                if handle.read(2) != b"PK" or recognise(file).kind != "skops":
                    continue
            findings = skops_findings(file, allowed)
        except LimitExceeded as error:
            found.limit(error, where)
            continue
        except ModeliumError:
            continue
        for finding in findings:
            at = f"{where}/{finding.where}".strip("/")
            found.note(finding.code, finding.severity, finding.message, at, finding.subject)
