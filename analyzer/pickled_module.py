"""Whole modules pickled by torch.save: which of their classes are known, which a person's file defines, what to ask."""

from __future__ import annotations

import ast
from pathlib import Path

from analyzer.draft import clean
from analyzer.pickle_allowlist import unmapped
from analyzer.pickle_machine import Reading
from analyzer.traced_values import Global
from schemas.descriptor import SecurityFinding, Severity
from schemas.errors import NeedsInput
from schemas.sidecar import Sidecar

_MAX_SOURCE_BYTES = 1 << 20
_TORCH_SAVE_PROTOCOL = 2


class WhichClasses(NeedsInput):
    """A pickled module asks for classes that nobody has allowed."""


def asked_for(reading: Reading) -> tuple[str, ...]:
    """Return the ``module.name`` of every global of a torch pickle, as an unpickler would look it up."""
    found = (Global(each.module, each.name, 0, _TORCH_SAVE_PROTOCOL) for each in reading.globals)
    return tuple(dict.fromkeys(".".join(unmapped(each)) for each in found))


def with_own_classes(
    findings: tuple[SecurityFinding, ...], sidecar: Sidecar | None, code: Path | None
) -> tuple[SecurityFinding, ...]:
    """Return ``findings`` with the unknown names that the sidecar's own files define turned into information.

    A person who names the file asks for it to be imported, as for bare weights; that file was scanned by itself.
    """
    if sidecar is None or sidecar.module is None or sidecar.module.file is None or code is None:
        return findings
    return tuple(_own(finding, sidecar.module.file, code) for finding in findings)


def _own(finding: SecurityFinding, file: str, code: Path) -> SecurityFinding:
    if finding.code != "pickle-global" or finding.severity is not Severity.UNKNOWN:
        return finding
    module, _, name = finding.subject.rpartition(".")
    if not any(name in classes_in(path) for path in places(module, file, code)):
        return finding
    message = f"This pickle asks for {finding.subject}, which the file that the sidecar names defines."
    return finding.model_copy(update={"severity": Severity.INFO, "message": message[:1000]})


def places(module: str, file: str, code: Path) -> tuple[Path, ...]:
    """Return where the class of pickled ``module`` may be defined: a file of that name beside, then the named file."""
    named = code / file
    parts = [part for part in module.split(".") if part.isidentifier()]
    return (named.parent.joinpath(*parts).with_suffix(".py"), named) if parts else (named,)


def classes_in(path: Path) -> frozenset[str]:
    """Return the names of the top-level classes that the Python file at ``path`` defines; none of a broken file."""
    if not path.is_file() or path.stat().st_size > _MAX_SOURCE_BYTES:
        return frozenset()
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return frozenset()
    return frozenset(node.name for node in tree.body if isinstance(node, ast.ClassDef))


def which_classes(findings: tuple[SecurityFinding, ...]) -> WhichClasses | None:
    """Return the question about a pickled module's unknown names, None where there are none."""
    names = [
        finding.subject
        for finding in findings
        if finding.severity is Severity.UNKNOWN and finding.code == "pickle-global" and finding.subject
    ]
    if not names:
        return None
    shown = ", ".join(clean(name, 120) for name in names[:8]) + (" ..." if len(names) > 8 else "")
    value = ",".join(clean(name, 120) for name in names[:20])
    own = names[0].rpartition(".")[2]
    they = "It is" if len(names) == 1 else "They are"
    return WhichClasses(
        f"May loading this whole pickled module import {shown}? {they} not on the list of names known to be harmless.",
        hint=f"If an installed package defines {'it' if len(names) == 1 else 'them'} and you trust it, add to the "
        f"setting allowed_pickle_globals (MODELIUM_ALLOWED_PICKLE_GLOBALS={value}) and retry. If it is your own class, "
        "put the Python file that defines it, say model.py, beside <filename>, with a sidecar <filename>.modelium.yaml "
        f"that says:\nmodule:\n  file: model.py\n  class_name: {clean(own, 80)}\n"
        "Or save the model as a program where it was trained:\n"
        "torch.export.save(torch.export.export(model.eval(), (example_input,)), 'model.pt2')",
        globals=value[:500],
    )
