"""Which globals a pickle asks for, and what the allowlist says about them; nothing is imported or called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from analyzer.pickle_allowlist import Judgement, judge, unmapped
from analyzer.pickle_trace import PickleTrace
from analyzer.scan_stream import Budget, ScanStream
from analyzer.traced_values import Blob, Global
from schemas.descriptor import SecurityFinding, Severity

TORCH_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_TORCH_PICKLES = 5
"""Magic number, protocol, system, object and storage keys; raw storages follow."""
MAX_PICKLES = 64


@dataclass(frozen=True)
class PickleGlobals:
    """What one pickle asks for, in order; ``consumed_bytes`` is where it stops, or where it could not go on."""

    names: tuple[tuple[str, str], ...]
    protocol: int
    complete: bool
    consumed_bytes: int
    errors: tuple[str, ...]
    persistent: bool
    """Whether it uses persistent ids, as torch does for storages."""

    @property
    def dotted(self) -> tuple[str, ...]:
        """The globals as ``module.name``, Python 2's names mapped as an unpickler maps them."""
        return tuple(f"{module}.{name}" for module, name in self.names)


def globals_of(data: bytes | BinaryIO, *, joblib: bool = True) -> PickleGlobals:
    """Disassemble the pickle that ``data`` starts with, joblib's array bytes stepped over; content raises nothing.

    Raises LimitExceeded for a pickle of more opcodes than a scan reads. Reads ahead in a handle.
    """
    machine = PickleTrace(ScanStream(data), Budget(), joblib=joblib).run()
    machines = family(machine)
    names = [unmapped(found) for each in machines for found in each.globals.values()]
    errors = [each.error for each in machines if each.error]
    return PickleGlobals(
        names=tuple(dict.fromkeys(names)),
        protocol=machine.highest_protocol,
        complete=machine.complete,
        consumed_bytes=machine.stream.offset,
        errors=tuple(dict.fromkeys(errors)),
        persistent=any(each.persistent for each in machines),
    )


def family(machine: PickleTrace) -> list[PickleTrace]:
    """Return ``machine`` and those that followed its object arrays."""
    return [machine, *(each for inner in machine.inner for each in family(inner))]


@dataclass(frozen=True)
class PickleRules:
    """What holds for the pickles of one file."""

    allowed_globals: frozenset[str] = frozenset()
    torchscript: bool = False
    """Its ``__torch__`` classes are code of the archive, which no Python import finds."""


Nested = Callable[[Blob, str], list[SecurityFinding]]


def findings_of(machine: PickleTrace, where: str, rules: PickleRules, nested: Nested) -> list[SecurityFinding]:
    """Judge what ``machine`` saw. ``nested`` is asked for every bytes constant that may hold a pickle or an archive."""
    found: list[SecurityFinding] = []
    for each in family(machine):
        for asked in each.globals.values():
            found += _global_finding(asked, where, rules)
        for what, offset in each.anomalies.items():
            found.append(
                SecurityFinding(
                    code="pickle-trick",
                    severity=Severity.DANGER,
                    message=f"This pickle does what only a doctored one does: {what}.",
                    where=place(where, offset),
                )
            )
        for blob in each.nested:
            found += nested(blob, place(where, blob.offset))
    if machine.error is not None:
        found.append(
            SecurityFinding(
                code="pickle-broken",
                severity=Severity.UNKNOWN,
                message=f"This pickle cannot be followed to its end: {machine.error}."[:1000],
                where=place(where, machine.stream.offset),
            )
        )
    return found


def place(where: str, offset: int) -> str:
    """Return a finding's place: the member's printable name and the offset in it."""
    return f"{printable(where)[:440]} at byte {offset}".strip()


def printable(text: str) -> str:
    """Return ``text`` with everything but printable ASCII escaped, so that look-alike letters show."""
    return "".join(c if " " <= c <= "~" else ascii(c)[1:-1] for c in text)


def _global_finding(asked: Global, where: str, rules: PickleRules) -> list[SecurityFinding]:
    module, name = unmapped(asked)
    subject = f"{module}.{name}"
    judgement = judge(asked, torchscript=rules.torchscript)
    if judgement is Judgement.ALLOWED:
        return []
    if judgement is Judgement.UNKNOWN and subject in rules.allowed_globals:
        return [
            SecurityFinding(
                code="pickle-global-allowed",
                severity=Severity.INFO,
                message=f"This pickle asks for {printable(subject)[:300]}, which the operator allows.",
                where=place(where, asked.offset),
                subject=printable(subject)[:300],
            )
        ]
    danger = judgement is Judgement.DANGER
    return [
        SecurityFinding(
            code="pickle-global",
            severity=Severity.DANGER if danger else Severity.UNKNOWN,
            message=f"This pickle asks for {printable(subject)[:300]}, "
            + ("which can run commands or code." if danger else "which is not on the list of known harmless names."),
            where=place(where, asked.offset),
            subject=printable(subject)[:300],
        )
    ]
