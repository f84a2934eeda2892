"""Python, and what calls for Python, in a model's own folder: auto_map, Lambda layers, templates that reach out."""

from __future__ import annotations

import json
import re
from typing import Any

from analyzer.pickle_scan import printable
from analyzer.user_code import findings_of
from schemas.descriptor import SecurityFinding, Severity

_TEMPLATE_ESCAPE = re.compile(
    r"__(?:class|mro|bases?|globals|subclasses|builtins|import|init|getattribute|dict|reduce\w*)__"
)


def code_findings(source: bytes, where: str, *, own: bool, allowed: frozenset[str]) -> list[SecurityFinding]:
    """Judge Python in a folder; ``own`` is what the sidecar's author wrote and Modelium runs.

    Other Python came with the model and is never run here: that it is there is information, what it is up to may be
    danger. Whether the model needs it is told by its config (``auto_map``).
    """
    found = [] if where.endswith(".ipynb") else findings_of(source, where, allowed=allowed)
    if own:
        return found
    shown = printable(where)[:300]
    carried = SecurityFinding(
        code="python-in-folder",
        severity=Severity.INFO,
        message="This folder carries its own Python, which Modelium does not run.",
        where=shown,
        subject=shown,
    )
    return [carried, *(f for f in found if f.severity is Severity.DANGER)]


def json_findings(data: bytes, where: str, name: str) -> list[SecurityFinding]:
    """Look for what makes a loader run code: auto_map, Keras Lambda layers, chat templates that leave their sandbox."""
    place = printable(where)[:450]
    text = data.decode("utf-8", "replace")
    found: list[SecurityFinding] = []
    if name.endswith(".jinja"):
        return _template(text, place)
    if not any(word in text for word in ("auto_map", "ambda", "custom_pipelines", "chat_template", "\\u")):
        return []
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return []
    pending: list[Any] = [document]
    while pending:
        part = pending.pop()
        if isinstance(part, list):
            pending += part
        elif isinstance(part, dict):
            pending += part.values()
            for key in ("auto_map", "custom_pipelines"):
                if part.get(key):
                    found.append(
                        SecurityFinding(
                            code="hf-auto-map",
                            severity=Severity.UNKNOWN,
                            message=f"This folder needs its own Python: {printable(name)[:100]} has {key}.",
                            where=place,
                            subject=key,
                        )
                    )
            if part.get("class_name") in ("Lambda", "__lambda__"):
                found.append(
                    SecurityFinding(
                        code="keras-lambda",
                        severity=Severity.DANGER,
                        message="A Keras Lambda layer in this file carries compiled Python code.",
                        where=place,
                    )
                )
            template = part.get("chat_template")
            if isinstance(template, str):
                found += _template(template, place)
            elif isinstance(template, list):
                for item in template:
                    if isinstance(item, dict) and isinstance(item.get("template"), str):
                        found += _template(item["template"], place)
    return found


def _template(text: str, place: str) -> list[SecurityFinding]:
    match = _TEMPLATE_ESCAPE.search(text)
    if match is None:
        return []
    return [
        SecurityFinding(
            code="template-escape",
            severity=Severity.DANGER,
            message=f"A chat template reaches for {match[0]}, as one that leaves its sandbox does.",
            where=place,
            subject=match[0],
        )
    ]
