"""Turn what the scan found and what the readers could not do into the one reason that a person is told."""

from __future__ import annotations

from analyzer.draft import CutShort, clean
from schemas.descriptor import SecurityFinding, Severity
from schemas.errors import ModeliumError, NeedsInput, Quarantined

_ALSO_DAMAGE = frozenset({"zip-mismatch", "zip-trailing", "zip-prefix"})
"""Dangers in a whole zip that a cut one shows too, when the end of a zip inside it is taken for its own."""


def decide(refusal: ModeliumError | None, findings: tuple[SecurityFinding, ...]) -> ModeliumError | None:
    """Return the reason to stop, None to go on.

    Danger comes first. What can't be served or is broken comes before a question, since answering would not help.
    """
    dangers = [finding for finding in findings if finding.severity is Severity.DANGER]
    unknowns = [finding for finding in findings if finding.severity is Severity.UNKNOWN]
    if isinstance(refusal, CutShort) and all(finding.code in _ALSO_DAMAGE for finding in dangers):
        return refusal
    if dangers:
        return Quarantined(
            _sentence(dangers),
            hint="Nothing in it was run. Delete it, or get the model from a source you trust, as safetensors or ONNX.",
            findings=len(dangers),
        )
    if isinstance(refusal, Quarantined) or (refusal is not None and not isinstance(refusal, NeedsInput)):
        return refusal
    if unknowns:
        return _question(unknowns)
    return refusal


def _sentence(findings: list[SecurityFinding]) -> str:
    first = findings[0]
    where = f" ({clean(first.where, 200)})" if first.where else ""
    more = f" {len(findings) - 1} more dangers were found." if len(findings) > 1 else ""
    message = clean(first.message, 800).rstrip(".")
    return f"{message}{where}.{more}"


def _question(findings: list[SecurityFinding]) -> NeedsInput:
    names = list(dict.fromkeys(f.subject for f in findings if f.code == "pickle-global" and f.subject))
    if not names:
        return NeedsInput(
            f"{_sentence(findings)} Is that meant?",
            hint="Remove it from the model, or save the model in a format that needs no code (ONNX, safetensors).",
        )
    shown = ", ".join(clean(name, 120) for name in names[:8]) + (" ..." if len(names) > 8 else "")
    value = ",".join(clean(name, 120) for name in names[:20])
    return NeedsInput(
        f"May loading this model import {shown}? {'It is' if len(names) == 1 else 'They are'} not on the list of names "
        "known to be harmless.",
        hint=f"If you trust {'it' if len(names) == 1 else 'them'}, add to the setting allowed_pickle_globals "
        f"(MODELIUM_ALLOWED_PICKLE_GLOBALS={value}) and retry.",
        globals=value[:500],
    )
