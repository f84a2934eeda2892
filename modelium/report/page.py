"""Page: everything the template draws, worked out from one account."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from markupsafe import Markup

from modelium import __version__
from modelium.report import charts, figures, numbers, plan_picture, recipe, story
from schemas.account import JobAccount
from schemas.descriptor import KnownBy, ModelDescriptor
from schemas.job import ENDS, JobState
from schemas.step_run import Isolation, StepRun

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
class Stage:
    """Time spent in one state of one attempt; an end takes none."""

    at: datetime
    state: JobState
    attempt: int
    seconds: float | None
    reason: str


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
    rows = figures.contenders(account)
    stages = timeline(account)
    return {
        "a": account,
        "story": told,
        "measured_before": story.measured_before(account),
        "contenders": rows,
        "batches": sorted({b for row in rows for b in row.at}),
        "figures": figures.drawn(account, rows, told.batch),
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
    }
