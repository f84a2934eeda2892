"""Figures: the table of contenders and one chart a question, worked out from an account."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from modelium.report import charts, numbers, story
from schemas.account import CandidateAccount, JobAccount
from schemas.evidence import ContenderVerdict, Measurement, OutputParity
from schemas.plan import ORIGINAL

_MOST_ROWS = 20
"""Contenders drawn in one chart; the table lists all of them."""


@dataclass(frozen=True)
class Contender:
    """One row of the table of candidates."""

    account: CandidateAccount
    verdict: ContenderVerdict | None
    kind: charts.Kind
    size_bytes: int | None
    at: dict[int, Measurement]

    @property
    def reason(self) -> str:
        """Return why it is where it is: the verdict's words, else its own failure or parity."""
        if self.verdict:
            return self.verdict.reason
        return self.account.reason or (self.account.parity.reason if self.account.parity else "")

    @property
    def outcome(self) -> str:
        """Return the verdict's outcome in words, else the candidate's state."""
        if self.kind == "original":
            return "baseline"
        return (self.verdict.outcome if self.verdict else self.account.state).replace("_", " ")


@dataclass(frozen=True)
class Figure:
    """One chart with the sentence below it."""

    heading: str
    picture: Markup
    caption: str


def contenders(account: JobAccount) -> list[Contender]:
    """Return all contenders: the original, the winner, then the fastest first, the dropped ones last."""
    batch = story.deciding_batch(account)

    def rank(contender: Contender) -> tuple[int, float]:
        order = {"original": 0, "winner": 1, "other": 2, "failed": 3}
        group = 0 if contender.account.id == ORIGINAL else order[contender.kind]
        found = contender.at.get(batch) if batch else None
        return group, found.median_ms if found else float("inf")

    rows = [
        Contender(
            account=c,
            verdict=story.verdict_of(account, c.id),
            kind=_kind(account, c),
            size_bytes=story.candidate_bytes(account, c),
            at={m.batch: m for m in c.measurements},
        )
        for c in account.candidates
    ]
    return sorted(rows, key=rank)


def _kind(account: JobAccount, candidate: CandidateAccount) -> charts.Kind:
    if candidate.id == account.winner:
        return "winner"
    if candidate.id == ORIGINAL:
        return "original"
    return "failed" if candidate.state in ("failed", "skipped") else "other"


def drawn(account: JobAccount, rows: Sequence[Contender], batch: int | None) -> list[Figure]:
    """Return all figures that the evidence allows, the one that decided first."""
    found = [
        speedup_figure(rows, batch),
        *latency_figures(rows),
        size_figure(rows),
        parity_figure(rows),
        accuracy_figure(account, rows),
    ]
    return [figure for figure in found if figure is not None]


def latency_figures(rows: Sequence[Contender]) -> list[Figure]:
    """Return one chart a batch size: median, 95% interval of the median over the rounds, and p95."""
    figures = []
    for batch in sorted({b for row in rows for b in row.at}):
        timed = [row for row in rows if batch in row.at]
        marks = []
        for row in timed[:_MOST_ROWS]:
            m = row.at[batch]
            noise = charts.noise_interval(m.rounds_ms)
            tip = f"{row.account.id} in {m.runtime}: median {numbers.ms(m.median_ms)}, p95 {numbers.ms(m.p95_ms)}"
            marks.append(
                charts.Bar(
                    row.account.id, m.median_ms, numbers.ms(m.median_ms), row.kind,
                    low=noise[0] if noise else None, high=noise[1] if noise else None, far=m.p95_ms, tip=tip,
                )
            )  # fmt: skip
        sentence = "; ".join(f"{bar.label} {bar.written}" for bar in marks)
        figures.append(
            Figure(
                f"Latency, batch {batch}",
                charts.bars(f"latency-{batch}", f"Median latency at batch {batch}", sentence, marks),
                _left_out(len(timed)),
            )
        )
    return figures


def size_figure(rows: Sequence[Contender]) -> Figure | None:
    """Return the sizes on disk."""
    known = [(row, row.size_bytes) for row in rows if row.size_bytes is not None]
    if len(known) < 2:
        return None
    marks = [charts.Bar(r.account.id, b, numbers.size(b), r.kind, tip=f"{b:,} bytes") for r, b in known[:_MOST_ROWS]]
    sentence = "; ".join(f"{bar.label} {bar.written}" for bar in marks)
    return Figure("Size", charts.bars("size", "Size on disk", sentence, marks), _left_out(len(known)))


def speedup_figure(rows: Sequence[Contender], batch: int | None) -> Figure | None:
    """Return the ratios to the original that decided, with their 95% intervals."""
    marks = []
    for row in rows:
        v = row.verdict
        if v is None or not v.speedup or row.account.id == ORIGINAL:
            continue
        span = f" ({numbers.times(v.speedup_low)} to {numbers.times(v.speedup_high)})" if v.speedup_low else ""
        marks.append(
            charts.Dot(
                row.account.id, v.speedup, numbers.times(v.speedup), row.kind, v.speedup_low, v.speedup_high,
                tip=f"{row.account.id}: {numbers.times(v.speedup)}{span}",
            )
        )  # fmt: skip
    if not marks:
        return None
    sentence = "; ".join(dot.tip for dot in marks[:_MOST_ROWS])
    return Figure(
        f"Speed-up over the original, batch {batch}",
        charts.speedups("speedup", "Speed-up over the original with its 95% interval", sentence, marks[:_MOST_ROWS]),
        _left_out(len(marks)),
    )


def parity_figure(rows: Sequence[Contender]) -> Figure | None:
    """Return how far each output of each candidate is from the original's."""
    marks = []
    for row in rows:
        parity = row.account.parity
        if parity is None or (row.account.id == ORIGINAL and len(rows) > 1):
            continue
        for output in parity.outputs:
            distance, limit = _distance(output, parity.tolerance.min_cosine, parity.tolerance.min_agreement)
            if distance is None:
                continue
            kind: charts.Kind = row.kind if output.passed else "failed"
            label = f"{row.account.id} · {numbers.shorten(output.name, 20)}"
            tip = f"{row.account.id}, output {output.name}: {output_words(output)}"
            marks.append(charts.Dot(label, distance, output_words(output), kind, limit=limit, tip=tip))
    if not marks:
        return None
    sentence = "; ".join(dot.tip for dot in marks[:_MOST_ROWS])
    return Figure(
        "Distance from the original’s answers",  # noqa: RUF001
        charts.distances("parity", "Distance of every output from the original's", sentence, marks[:_MOST_ROWS]),
        _left_out(len(marks)),
    )


def accuracy_figure(account: JobAccount, rows: Sequence[Contender]) -> Figure | None:
    """Return the share of right answers before and after, where there are samples with labels."""
    before = account.reference.accuracy if account.reference else None
    if before is None:
        return None
    marks = [charts.Bar("original", before, numbers.percent(before), "original")]
    for row in rows:
        after = row.account.parity.accuracy if row.account.parity else None
        if after is not None and row.account.id != ORIGINAL:
            marks.append(charts.Bar(row.account.id, after, numbers.percent(after), row.kind))
    sentence = "; ".join(f"{bar.label} {bar.written}" for bar in marks[:_MOST_ROWS])
    return Figure(
        "Accuracy on the samples",
        charts.bars("accuracy", "Share of right answers", sentence, marks[:_MOST_ROWS], least_top=1.0),
        _left_out(len(marks)),
    )


def output_words(output: OutputParity) -> str:
    """Return one output's parity in a few characters."""
    if output.method == "agreement":
        return f"{numbers.percent(output.agreement)} equal"
    if output.cosine is not None and (1 - output.cosine > story.COSINE_GAP or output.max_abs is None):
        return f"cosine {numbers.cosine(output.cosine)}"
    return f"max diff {numbers.difference(output.max_abs)}"


def _distance(output: OutputParity, min_cosine: float, min_agreement: float) -> tuple[float | None, float]:
    if output.method == "agreement":
        return (None if output.agreement is None else 1 - output.agreement), 1 - min_agreement
    return (None if output.cosine is None else max(0.0, 1 - output.cosine)), 1 - min_cosine


def _left_out(rows: int) -> str:
    return f"{rows - _MOST_ROWS} more stand in the table." if rows > _MOST_ROWS else ""
