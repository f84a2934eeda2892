"""Turn what the scan found and what the readers could not do into the one reason that a person is told."""

from __future__ import annotations

from analyzer.draft import CutShort, clean
from analyzer.pickled_module import WhichClasses
from schemas.descriptor import SecurityFinding, Severity
from schemas.errors import ModeliumError, NeedsInput, Quarantined

_ALSO_DAMAGE = frozenset({"zip-mismatch", "zip-trailing", "zip-prefix"})
"""Dangers in a whole zip that a cut one shows too, when the end of a zip inside it is taken for its own."""


_LIFTED_BY_NAME = frozenset({"pickle-global", "user-code-call"})
"""Doubts whose subject is a dotted name that the setting allowed_pickle_globals takes away."""


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
    if isinstance(refusal, WhichClasses) and all(finding.code == "pickle-global" for finding in unknowns):
        return refusal
    if unknowns:
        return _question(unknowns)
    return refusal


def archive_dangers(findings: tuple[SecurityFinding, ...]) -> tuple[SecurityFinding, ...]:
    """Return what is dangerous in an archive; doubts about its members are for the analysis of what it unpacks to."""
    return tuple(finding for finding in findings if finding.severity is Severity.DANGER)


def _sentence(findings: list[SecurityFinding], *, thing: str = "danger") -> str:
    first = findings[0]
    where = f" ({clean(first.where, 200)})" if first.where else ""
    others = len(findings) - 1
    more = f" {others} more {thing}{' was' if others == 1 else 's were'} found." if others else ""
    message = clean(first.message, 800).rstrip(".")
    return f"{message}{where}.{more}"


def _question(findings: list[SecurityFinding]) -> NeedsInput:
    # What no setting lifts comes first: allowing the names would only lead to the next question.
    fixed = [f for f in findings if f.code not in _LIFTED_BY_NAME or not f.subject]
    if fixed:
        return NeedsInput(
            f"{_sentence(fixed, thing='doubt')} Is that meant?",
            hint="No setting allows it: remove it from the model, or save the model in a format that needs no code "
            "(ONNX, safetensors).",
        )
    names = list(dict.fromkeys(f.subject for f in findings))
    shown = ", ".join(clean(name, 120) for name in names[:8]) + (" ..." if len(names) > 8 else "")
    value = ",".join(clean(name, 120) for name in names[:20])
    they = "It is" if len(names) == 1 else "They are"
    if any(f.code == "pickle-global" for f in findings):
        question = f"May loading this model import {shown}? {they} not on the list of names known to be harmless."
    else:
        where = f" ({clean(findings[0].where, 200)})" if findings[0].where else ""
        question = f"May this model's code use {shown}{where}? {they} among what reaches files or objects."
    return NeedsInput(
        question,
        hint=f"If you trust {'it' if len(names) == 1 else 'them'}, add to the setting allowed_pickle_globals "
        f"(MODELIUM_ALLOWED_PICKLE_GLOBALS={value}) and retry.",
        globals=value[:500],
    )
