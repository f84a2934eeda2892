"""Page: everything the template draws, worked out from one account."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from markupsafe import Markup

from modelium import __version__
from modelium.report import charts, numbers, plan_picture, recipe, story
from schemas.account import CandidateAccount, JobAccount
from schemas.descriptor import KnownBy, ModelDescriptor
from schemas.evidence import ContenderVerdict, Measurement, OutputParity
from schemas.job import ENDS, JobState
from schemas.plan import ORIGINAL
from schemas.step_run import Isolation, StepRun

_MOST_ROWS = 20
"""Contenders drawn in one chart; the table lists all of them."""

KNOWN_WORDS = {
    KnownBy.HEADER: "read from the file",
    KnownBy.PROBE: "found by running it",
    KnownBy.SIDECAR: "said in the sidecar",
    KnownBy.GUESS: "guessed",
}


@dataclass(frozen=True)
class Fact:
    """One thing known of the model, and how."""

    label: str
    value: str
    known: KnownBy | None
    tip: str = ""


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


@dataclass(frozen=True)
class Stage:
    """Time spent in one state of one attempt; an end takes none."""

    at: datetime
    state: JobState
    attempt: int
    seconds: float | None
    reason: str


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


def latency_figures(rows: Sequence[Contender]) -> list[Figure]:
    """Return one chart a batch size: median, 95% interval of the median over the rounds, and p95."""
    figures = []
    for batch in sorted({b for row in rows for b in row.at}):
        timed = [row for row in rows if batch in row.at]
        drawn = []
        for row in timed[:_MOST_ROWS]:
            m = row.at[batch]
            noise = charts.noise_interval(m.rounds_ms)
            tip = f"{row.account.id} in {m.runtime}: median {numbers.ms(m.median_ms)}, p95 {numbers.ms(m.p95_ms)}"
            drawn.append(
                charts.Bar(
                    row.account.id, m.median_ms, numbers.ms(m.median_ms), row.kind,
                    low=noise[0] if noise else None, high=noise[1] if noise else None, far=m.p95_ms, tip=tip,
                )
            )  # fmt: skip
        sentence = "; ".join(f"{bar.label} {bar.written}" for bar in drawn)
        figures.append(
            Figure(
                f"Latency, batch {batch}",
                charts.bars(f"latency-{batch}", f"Median latency at batch {batch}", sentence, drawn),
                _left_out(len(timed)),
            )
        )
    return figures


def size_figure(rows: Sequence[Contender]) -> Figure | None:
    """Return the sizes on disk."""
    known = [(row, row.size_bytes) for row in rows if row.size_bytes is not None]
    if len(known) < 2:
        return None
    drawn = [charts.Bar(r.account.id, b, numbers.size(b), r.kind, tip=f"{b:,} bytes") for r, b in known[:_MOST_ROWS]]
    sentence = "; ".join(f"{bar.label} {bar.written}" for bar in drawn)
    return Figure("Size", charts.bars("size", "Size on disk", sentence, drawn), _left_out(len(known)))


def speedup_figure(rows: Sequence[Contender], batch: int | None) -> Figure | None:
    """Return the ratios to the original that decided, with their 95% intervals."""
    drawn = []
    for row in rows:
        v = row.verdict
        if v is None or not v.speedup or row.account.id == ORIGINAL:
            continue
        span = f" ({numbers.times(v.speedup_low)} to {numbers.times(v.speedup_high)})" if v.speedup_low else ""
        drawn.append(
            charts.Dot(
                row.account.id, v.speedup, numbers.times(v.speedup), row.kind, v.speedup_low, v.speedup_high,
                tip=f"{row.account.id}: {numbers.times(v.speedup)}{span}",
            )
        )  # fmt: skip
    if not drawn:
        return None
    sentence = "; ".join(dot.tip for dot in drawn[:_MOST_ROWS])
    return Figure(
        f"Speed-up over the original, batch {batch}",
        charts.speedups("speedup", "Speed-up over the original with its 95% interval", sentence, drawn[:_MOST_ROWS]),
        _left_out(len(drawn)),
    )


def parity_figure(rows: Sequence[Contender]) -> Figure | None:
    """Return how far each output of each candidate is from the original's."""
    drawn = []
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
            drawn.append(charts.Dot(label, distance, output_words(output), kind, limit=limit, tip=tip))
    if not drawn:
        return None
    sentence = "; ".join(dot.tip for dot in drawn[:_MOST_ROWS])
    return Figure(
        "Distance from the original’s answers",  # noqa: RUF001
        charts.distances("parity", "Distance of every output from the original's", sentence, drawn[:_MOST_ROWS]),
        _left_out(len(drawn)),
    )


def accuracy_figure(account: JobAccount, rows: Sequence[Contender]) -> Figure | None:
    """Return the share of right answers before and after, where there are samples with labels."""
    before = account.reference.accuracy if account.reference else None
    if before is None:
        return None
    drawn = [charts.Bar("original", before, numbers.percent(before), "original")]
    for row in rows:
        after = row.account.parity.accuracy if row.account.parity else None
        if after is not None and row.account.id != ORIGINAL:
            drawn.append(charts.Bar(row.account.id, after, numbers.percent(after), row.kind))
    sentence = "; ".join(f"{bar.label} {bar.written}" for bar in drawn[:_MOST_ROWS])
    return Figure(
        "Accuracy on the samples",
        charts.bars("accuracy", "Share of right answers", sentence, drawn[:_MOST_ROWS], least_top=1.0),
        _left_out(len(drawn)),
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


def facts(account: JobAccount) -> list[Fact]:
    """Return what is known of the model, each with how; what is not known is left out."""
    d = account.descriptor
    if d is None:
        return []
    by = d.known_by
    version = f"{d.framework} {d.framework_version}" if d.framework and d.framework_version else d.framework
    rows = [
        Fact("Format", d.format.value.replace("_", " "), by.get("format")),
        Fact("Framework", version or "", by.get("framework")),
        Fact("Producer", d.producer or "", by.get("producer")),
        Fact("Architecture", d.architecture or "", by.get("architecture")),
        Fact("Task", d.task or "", by.get("task")),
        _number("Parameters", d.parameter_count, numbers.count, by.get("parameter_count")),
        _number("Weights", d.parameter_bytes, numbers.size, by.get("parameter_bytes")),
        Fact("Weight types", _counts(d.parameter_dtypes), by.get("parameter_dtypes")),
        _number("Work for one row", d.flops, lambda n: f"{numbers.count(n)} FLOP", by.get("flops")),
        _number("Memory to run", d.memory_bytes, numbers.size, by.get("memory_bytes")),
        Fact("Opset", str(d.opset) if d.opset else "", by.get("opset")),
        Fact("Tokenizer", d.tokenizer or "", by.get("tokenizer")),
        Fact("Labels", _some(d.labels), by.get("labels")),
        Fact("Licence", d.license or "", by.get("license")),
        Fact("Model file", d.entry or "", by.get("entry")),
        _number("Size", d.size_bytes, numbers.size, by.get("size_bytes")),
    ]
    return [row for row in rows if row.value]


def _number(label: str, value: int | None, write: Callable[[float | None], str], known: KnownBy | None) -> Fact:
    return Fact(label, "", known) if value is None else Fact(label, write(value), known, tip=f"{value:,}")


def _counts(found: dict[str, int]) -> str:
    return ", ".join(f"{name} ({numbers.count(n)})" for name, n in sorted(found.items(), key=lambda item: -item[1]))


def _some(names: Sequence[str], most: int = 12) -> str:
    if not names:
        return ""
    shown = ", ".join(numbers.shorten(name, 60) for name in names[:most])
    return f"{len(names):,}: {shown}" + (", …" if len(names) > most else "")


def operators(descriptor: ModelDescriptor, most: int = 14) -> tuple[list[tuple[str, int]], int]:
    """Return the commonest operators, and how many kinds are left out."""
    ordered = sorted(descriptor.operators.items(), key=lambda item: (-item[1], item[0]))
    return ordered[:most], max(0, len(ordered) - most)


def timeline(account: JobAccount) -> list[Stage]:
    """Return how long each state of the job took; the last one is open unless it is an end."""
    rows = []
    for i, change in enumerate(account.history):
        following = account.history[i + 1] if i + 1 < len(account.history) else None
        ended = change.after in ENDS
        seconds = None if ended or following is None else max(0.0, (following.at - change.at).total_seconds())
        rows.append(Stage(change.at, change.after, change.attempt, seconds, change.reason or ""))
    return rows


def timeline_picture(stages: Sequence[Stage], attempt: int) -> Markup | None:
    """Return the newest attempt's time as one bar."""
    spans = [(s.state.value, s.seconds) for s in stages if s.attempt == attempt and s.seconds is not None]
    if not spans:
        return None
    sentence = "; ".join(f"{name} {numbers.duration(seconds)}" for name, seconds in spans)
    return charts.stages("stages", "Time by stage", sentence, spans)


def isolations(steps: Sequence[StepRun]) -> list[tuple[Isolation, list[StepRun]]]:
    """Return each level of isolation that was enforced, with the steps that ran under it."""
    groups: list[tuple[Isolation, list[StepRun]]] = []
    for run in steps:
        if run.isolation is None or run.cached_from:
            continue
        for isolation, runs in groups:
            if isolation == run.isolation:
                runs.append(run)
                break
        else:
            groups.append((run.isolation, [run]))
    return groups


def pretty_line(value: object) -> str:
    """Return ``value`` as JSON in one line."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _stage_colours(stages: Sequence[Stage], attempt: int) -> list[int]:
    """Return the colour of each stage as :func:`charts.stages` gives them out."""
    colours, given = [], 0
    for stage in stages:
        colours.append(given % charts.STAGE_COLOURS)
        given += stage.attempt == attempt and stage.seconds is not None
    return colours


def context(account: JobAccount) -> dict[str, object]:
    """Return everything the template needs."""
    told = story.tell(account)
    rows = contenders(account)
    figures = [
        speedup_figure(rows, told.batch),
        *latency_figures(rows),
        size_figure(rows),
        parity_figure(rows),
        accuracy_figure(account, rows),
    ]
    stages = timeline(account)
    return {
        "a": account,
        "story": told,
        "contenders": rows,
        "batches": sorted({b for row in rows for b in row.at}),
        "figures": [figure for figure in figures if figure],
        "facts": facts(account),
        "operators": operators(account.descriptor) if account.descriptor else ([], 0),
        "plan_picture": plan_picture.draw(account, account.plan) if account.plan else None,
        "find_stored": recipe.FIND_STORED,
        "recipes": recipe.write_down(account),
        "stages": stages,
        "timeline_picture": timeline_picture(stages, account.job.attempt),
        "isolations": isolations(account.steps),
        "only_read": all(run.kind == "analyze" for run in account.steps),
        "known_words": KNOWN_WORDS,
        "file_name": story.file_name(account.job.uri),
        "n": numbers,
        "pretty_line": pretty_line,
        "parity_parts": story.parity_parts,
        "parity_text": story.parity_text,
        "stage_colours": _stage_colours(stages, account.job.attempt),
        "version": __version__,
        "output_words": output_words,
    }
