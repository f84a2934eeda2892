"""Result: what became of one model of the zoo, and the file that keeps results between runs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Literal

Outcome = Literal["proven", "refused", "unnamed", "wrong", "original"]
OUTCOMES: dict[str, str] = {
    "proven": "converted and proven, or published unchanged",
    "refused": "ended with a named cause",
    "unnamed": "ended without a named cause, or with a traceback",
    "wrong": "published, and the answers are not the expected ones",
    "original": "its own runtime does not run it",
}
_QUOTED = re.compile(r"'[^']{0,200}'|\"[^\"]{0,200}\"|“[^”]{0,200}”")
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e-?\d+)?(?![\w])")
_LIST = re.compile(r"\[[^\]]*\]|\([\d, ]+\)")
CAUSE_LENGTH = 150


@dataclass
class Result:
    """One model. ``version`` fingerprints our sources, so that a result is not taken for a later version's."""

    family: str
    name: str
    sha256: str
    version: str
    way: str
    outcome: Outcome
    code: str = ""
    message: str = ""
    hint: str = ""
    winner: str = ""
    seconds: float = 0.0
    notes: dict[str, Any] = field(default_factory=dict)
    measured: str = field(default_factory=lambda: str(date.today()))

    @property
    def key(self) -> str:
        """What makes a result reusable."""
        return f"{self.family}/{self.name}/{self.sha256}/{self.version}"

    @property
    def cause(self) -> str:
        """The message without what only this model says, so that equal causes count together."""
        return cause_of(self.message)


def cause_of(message: str) -> str:
    """Return a message with its names, numbers and lists taken out."""
    text = _QUOTED.sub("…", message.split(". ")[0].strip().rstrip("."))
    text = _NUMBER.sub("N", _LIST.sub("[…]", text))
    return text if len(text) <= CAUSE_LENGTH else text[: CAUSE_LENGTH - 1] + "…"


def outcome_of(code: str, message: str, *, traceback: bool = False) -> Outcome:
    """Return what an end with an error counts as: a fault of ours, or a cause that a person can act on."""
    if traceback or not message or not code or code in ("internal", "sandbox_crashed") or "Traceback (most" in message:
        return "unnamed"
    return "refused"


class ResultFile:
    """Results as JSON lines, the last one of a model counts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results: dict[str, Result] = {}
        if path.is_file():
            for line in path.read_text().splitlines():
                result = Result(**json.loads(line))
                self.results[f"{result.family}/{result.name}"] = result

    def find(self, family: str, name: str, sha256: str, version: str | None) -> Result | None:
        """Return the kept result of the same bytes; of any version of ours with ``version=None``."""
        found = self.results.get(f"{family}/{name}")
        if found is None or found.sha256 != sha256 or version not in (None, found.version):
            return None
        return found

    def keep(self, result: Result) -> None:
        """Add one result; the file is whole after each."""
        self.results[f"{result.family}/{result.name}"] = result
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as stream:
            stream.write(json.dumps(asdict(result)) + "\n")

    def of(self, families: Iterable[str]) -> list[Result]:
        """Return the results of these families, by name."""
        wanted = set(families)
        return sorted((r for r in self.results.values() if r.family in wanted), key=lambda r: (r.family, r.name))
