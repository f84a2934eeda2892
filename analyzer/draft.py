"""Draft: what the readers fill while a model is read; it becomes the ModelDescriptor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from schemas.descriptor import Format, KnownBy, ModelDescriptor, SecurityFinding
from schemas.errors import ModelFailed, ModeliumError

MAX_TEXT = 200
MAX_NOTES = 50
MAX_OPERATORS = 1000
MAX_COUNT = (1 << 63) - 1
_COUNTS = frozenset({"parameter_count", "parameter_bytes", "matrix_bytes", "memory_bytes", "flops"})


def clean(text: str, limit: int = MAX_TEXT) -> str:
    """Return ``text`` as one printable line of at most ``limit`` characters that any encoder takes.

    Model files name things as they like: control characters, lone surrogates and megabytes all occur.
    """
    head = text[: limit * 4].encode("utf-8", "replace").decode("utf-8")
    line = " ".join("".join(c if c.isprintable() else " " for c in head).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def listing(names: Iterable[str], *, most: int = 6) -> str:
    """Return ``names`` as one phrase, cut after ``most`` of them."""
    every = list(names)
    shown = ", ".join(clean(name, 80) for name in every[:most])
    return shown + (f" and {len(every) - most} more" if len(every) > most else "")


@dataclass
class Draft:
    """The facts of one artifact, each with how it is known; readers write, ``descriptor`` reads once."""

    path: Path
    format: Format
    size_bytes: int
    sha256: str = ""
    has_module: bool = False
    """A sidecar names the class that bare weights belong to."""
    told_inputs: frozenset[str] = frozenset()
    """Names of the inputs that a sidecar declares."""
    facts: dict[str, Any] = field(default_factory=dict)
    known_by: dict[str, KnownBy] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    refusal: ModeliumError | None = None

    @property
    def file(self) -> Path:
        """The model file itself: ``path``, or the ``entry`` inside the folder it is."""
        return self.path / self.facts["entry"] if "entry" in self.facts else self.path

    def know(self, by: KnownBy = KnownBy.HEADER, **facts: Any) -> None:
        """Record facts; None and empty values are not facts and leave what is known alone."""
        for name, value in facts.items():
            if value is None or value == () or value == {} or value == "":
                continue
            if name in _COUNTS and value > MAX_COUNT:
                continue
            self.facts[name] = clean(value) if isinstance(value, str) and name != "entry" else value
            self.known_by[name] = by

    def note(self, sentence: str) -> None:
        """Add a sentence that a person should read; each is kept once."""
        line = clean(sentence, 500)
        if len(self.notes) < MAX_NOTES and line not in self.notes:
            self.notes.append(line)

    def refuse(self, error: ModeliumError) -> None:
        """Record why the artifact goes no further; the first reason stands."""
        if self.refusal is None:
            self.refusal = error

    def parameters(self, tensors: Iterable[tuple[str, int, int]]) -> None:
        """Sum ``(dtype, count, size_bytes)`` of every parameter and estimate memory.

        Memory of running one row = parameter bytes (the weights in memory) + a quarter of them, at least 16 MiB, for
        activations and the runtime's arena. It is a floor to refuse by, not a promise: activations are not in headers.
        """
        count = size_bytes = 0
        dtypes: dict[str, int] = {}
        for dtype, number, nbytes in tensors:
            count += number
            size_bytes += nbytes
            if dtype in dtypes or len(dtypes) < 32:
                dtypes[dtype] = dtypes.get(dtype, 0) + number
        if not count or max(count, size_bytes) > MAX_COUNT:
            return
        self.know(parameter_count=count, parameter_bytes=size_bytes, parameter_dtypes=dtypes)
        self.know(KnownBy.GUESS, memory_bytes=size_bytes + max(size_bytes // 4, 16 << 20))

    def operators(self, counts: dict[str, int]) -> None:
        """Record the operator histogram, the most frequent first."""
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MAX_OPERATORS]
        self.know(operators={clean(name, 120): number for name, number in ordered})

    def descriptor(self, findings: tuple[SecurityFinding, ...]) -> ModelDescriptor:
        """Return everything that is known, within the schema's limits."""
        facts = dict(self.facts)
        if "labels" in facts:
            facts["labels"] = tuple(clean(label) for label in facts["labels"][:100_000])
        if "files" in facts:
            facts["files"] = tuple(clean(name, 255) for name in facts["files"][:1000])
        return ModelDescriptor(
            artifact_sha256=self.sha256,
            format=self.format,
            size_bytes=self.size_bytes,
            findings=findings[:1000],
            known_by={"format": KnownBy.HEADER, **self.known_by},
            notes=tuple(self.notes),
            **facts,
        )


class CutShort(ModelFailed):
    """The file ends before its format says it does."""


def cut_short(what: str, fact: str) -> CutShort:
    """Return the refusal of a truncated file: what it is, what is missing, what probably happened."""
    return CutShort(
        f"This file is a truncated {what}: {fact}; it was probably cut off while it was copied or downloaded.",
        hint="Copy it again and compare the size with the source's.",
    )
