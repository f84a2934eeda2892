"""Story: the few facts of a job that a person wants first, drawn from its account."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote

from modelium.report import numbers
from schemas.account import CandidateAccount, JobAccount
from schemas.evidence import ContenderVerdict, Measurement, ParityReport
from schemas.job import ENDS, JobState
from schemas.plan import ORIGINAL

Tone = Literal["good", "calm", "ask", "bad", "danger", "off", "busy"]

TONES: dict[JobState, Tone] = {
    JobState.DEPLOYED: "good",
    JobState.UNCHANGED: "calm",
    JobState.NEEDS_INPUT: "ask",
    JobState.FAILED: "bad",
    JobState.QUARANTINED: "danger",
    JobState.CANCELLED: "off",
}
TITLES: dict[JobState, str] = {state: state.value.replace("_", " ").capitalize() for state in JobState}

COSINE_GAP = 5e-7
"""Nearer to 1 than float32 can tell a cosine says nothing, and the largest difference is shown instead."""

STEADY = 1.5
"""Two ways to tell a speed-up that differ by more than this factor are not one number."""


@dataclass(frozen=True)
class Story:
    """What the top of a report and one line of a summary say. Fields that are not known are None or ''."""

    name: str
    state: JobState
    tone: Tone
    title: str
    reason: str
    hint: str
    batch: int | None
    before_ms: float | None
    after_ms: float | None
    speedup: ContenderVerdict | None
    before_bytes: int | None
    after_bytes: int | None
    parity: str
    winner: CandidateAccount | None
    original: CandidateAccount | None

    @property
    def ended(self) -> bool:
        """Whether the job has come to one of its ends."""
        return self.state in ENDS

    @property
    def unsteady(self) -> bool:
        """Whether the paired rounds and the medians of all runs tell different stories, as on a disturbed machine."""
        ratio = self.speedup.speedup if self.speedup else None
        if not ratio or not self.before_ms or not self.after_ms:
            return False
        return not 1 / STEADY < ratio * self.after_ms / self.before_ms < STEADY

    @property
    def factor(self) -> float | None:
        """Return how many times as fast the winner is; the lesser of both ways to tell when they disagree."""
        ratio = self.speedup.speedup if self.speedup else None
        if ratio and self.unsteady and self.before_ms and self.after_ms:
            return min(ratio, self.before_ms / self.after_ms)
        return ratio

    @property
    def kept_original(self) -> bool:
        """Whether the model as it was dropped is what is served."""
        return self.winner is not None and self.winner.id == ORIGINAL


def tell(account: JobAccount) -> Story:
    """Return the story of ``account``."""
    by_id = {candidate.id: candidate for candidate in account.candidates}
    winner = by_id.get(account.winner) if account.winner else None
    original = by_id.get(ORIGINAL)
    batch = deciding_batch(account)
    error = account.job.error
    return Story(
        name=name_of(account),
        state=account.state,
        tone=TONES.get(account.state, "busy"),
        title=TITLES[account.state],
        reason=account.reason or (error.message if error else ""),
        hint=account.hint or (error.hint if error else ""),
        batch=batch,
        before_ms=_median(original, batch),
        after_ms=_median(winner, batch),
        speedup=verdict_of(account, winner.id) if winner else None,
        before_bytes=original_bytes(account),
        after_bytes=winner.size_bytes if winner else None,
        parity=parity_text(winner.parity) if winner and winner.parity else "",
        winner=winner,
        original=original,
    )


def name_of(account: JobAccount) -> str:
    """Return the deployment's name, else the file's or folder's own."""
    return account.job.name or file_name(account.job.uri)


def file_name(uri: str) -> str:
    """Return the last part of ``uri``, unquoted."""
    path = uri.partition("://")[2] or uri
    return unquote(path.rstrip("/").rsplit("/", 1)[-1]) or uri


def deciding_batch(account: JobAccount) -> int | None:
    """Return the batch size that decided: the target's first that was measured, else the least measured one."""
    measured = {m.batch for candidate in account.candidates for m in candidate.measurements}
    wanted = [b for b in account.job.target.batch_sizes if b in measured]
    return wanted[0] if wanted else min(measured, default=None)


def original_bytes(account: JobAccount) -> int | None:
    """Return the size of what was dropped."""
    if account.artifact:
        return account.artifact.size_bytes
    return account.descriptor.size_bytes if account.descriptor else None


def measured(candidate: CandidateAccount | None, batch: int | None) -> Measurement | None:
    """Return the measurement of ``candidate`` at ``batch``."""
    if candidate is None:
        return None
    return next((m for m in candidate.measurements if m.batch == batch), None)


def measured_before(account: JobAccount) -> str:
    """Return the sentence that says from when a measurement is that an earlier job of the same bytes made, or ''."""
    for run in account.steps:
        if run.kind == "measure" and run.cached_from and run.made_at:
            return (
                f"Measured on {run.made_at:%Y-%m-%d at %H:%M} UTC, for an earlier job of the same bytes on this "
                "machine; `modelium retry` measures anew."
            )
    return ""


def verdict_of(account: JobAccount, contender: str) -> ContenderVerdict | None:
    """Return what the verdict says of ``contender``."""
    contenders = account.verdict.contenders if account.verdict else ()
    return next((c for c in contenders if c.contender == contender), None)


def candidate_bytes(account: JobAccount, candidate: CandidateAccount) -> int | None:
    """Return the size of ``candidate``; the original's is the size of what was dropped."""
    if candidate.size_bytes is None and candidate.id == ORIGINAL:
        return original_bytes(account)
    return candidate.size_bytes


def parity_parts(parity: ParityReport) -> tuple[str, str]:
    """Return the worst of all outputs as a number and what it is: a cosine, a difference or a share of equals."""
    cosines = [o.cosine for o in parity.outputs if o.method == "numeric" and o.cosine is not None]
    differences = [o.max_abs for o in parity.outputs if o.method == "numeric" and o.max_abs is not None]
    agreements = [o.agreement for o in parity.outputs if o.method == "agreement" and o.agreement is not None]
    if differences and max(differences) == 0 and min(agreements, default=1) == 1:
        return "identical", "outputs"
    if agreements and min(agreements) < 1:
        return numbers.percent(min(agreements)), "equal answers"
    if cosines and (1 - min(cosines) > COSINE_GAP or not differences):
        return numbers.cosine(min(cosines)), "cosine"
    if differences:
        return numbers.difference(max(differences)), "largest difference"
    if agreements:
        return numbers.percent(min(agreements)), "equal answers"
    return ("passed" if parity.passed else "failed"), "parity"


def parity_text(parity: ParityReport) -> str:
    """Return parity in a few characters, for a cell of a table."""
    number, what = parity_parts(parity)
    short = {"cosine": "cosine {}", "largest difference": "max diff {}", "equal answers": "{} equal"}
    return short.get(what, "{}").format(number)


def _median(candidate: CandidateAccount | None, batch: int | None) -> float | None:
    found = measured(candidate, batch)
    return found.median_ms if found else None
