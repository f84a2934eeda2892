"""The plan as a picture: what was dropped, each candidate's chain of steps, its proof, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from modelium.report import numbers, story
from modelium.report.svg import element, picture, text
from schemas.account import CandidateAccount, JobAccount
from schemas.catalog import parse_options
from schemas.errors import InvalidDocument
from schemas.plan import Candidate, ConversionPlan, Step
from schemas.step_run import StepRun, StepRunState

_SOURCE_W, _STEP_W, _PROOF_W = 148, 212, 200
_GAP, _LANE, _BOX, _FALLBACK = 30, 84, 56, 22
_TOP = 8
_NOTE = 21
"""Characters beside the time in a step's second line."""

_WORDS = {
    StepRunState.SUCCEEDED: "done",
    StepRunState.FAILED: "failed",
    StepRunState.RUNNING: "running",
    StepRunState.LOST: "lost",
    StepRunState.CANCELLED: "cancelled",
}


def draw(account: JobAccount, plan: ConversionPlan) -> Markup:
    """Return the plan as a flow from left to right, one lane a candidate, coloured by what really happened."""
    depth = max((len(c.steps) for c in plan.candidates), default=0)
    width = _SOURCE_W + _GAP + depth * (_STEP_W + _GAP) + _PROOF_W + 2
    accounts = {c.id: c for c in account.candidates}
    tops, height = _lanes(plan.candidates)
    middle = (tops[0] + tops[-1] + _BOX) / 2
    parts: list[Markup] = []
    for candidate, top in zip(plan.candidates, tops, strict=True):
        lane = accounts.get(candidate.id)
        won = account.winner == candidate.id
        tone = _tone(lane, won)
        x: float = _SOURCE_W
        y = top + _BOX / 2
        bend = x + _GAP / 2
        wire = f"M{x} {middle} C{bend} {middle} {bend} {y} {x + _GAP} {y}"
        if candidate.steps:
            parts.append(element("path", d=wire, class_=f"wire {tone}"))
        else:
            # The original passes by every step on its way to the proof.
            proof_x = width - 2 - _PROOF_W
            parts.append(element("path", d=f"{wire} L{proof_x} {y}", class_=f"wire {tone}"))
            parts.append(text(x + _GAP + 8, y - 8, "as it was dropped", "note"))
        x += _GAP
        for index, step in enumerate(candidate.steps):
            runs = _runs_of(account.steps, candidate.id, step)
            parts += _step_box(x, top, step, runs, account.steps, candidate.id)
            x += _STEP_W
            end = x + _GAP if index + 1 < len(candidate.steps) else width - 2 - _PROOF_W
            parts.append(element("path", d=f"M{x} {y} L{end} {y}", class_=f"wire {tone}"))
            x += _GAP
        parts += _proof_box(width - 2 - _PROOF_W, top, candidate, lane, account, tone)
    parts += _source_box(account, middle)
    sentence = f"{numbers.count(len(plan.candidates))} candidates, written by planner {plan.planner}: " + "; ".join(
        f"{c.id}: {' then '.join(s.kind for s in c.steps) or 'no steps'}" for c in plan.candidates
    )
    return picture(
        "plan", "The conversion plan", sentence, *parts, viewBox=f"0 0 {width} {height}", width=width, height=height,
        class_="flow",
    )  # fmt: skip


def _lanes(candidates: Sequence[Candidate]) -> tuple[list[float], float]:
    tops, y = [], float(_TOP)
    for candidate in candidates:
        tops.append(y)
        y += _LANE + _FALLBACK * max((len(step.fallbacks) for step in candidate.steps), default=0)
    return tops, y - (_LANE - _BOX) + _TOP


def _source_box(account: JobAccount, middle: float) -> list[Markup]:
    format_ = account.descriptor.format.value if account.descriptor else "?"
    top = middle - _BOX / 2
    return [
        element("rect", x=1, y=top, width=_SOURCE_W - 1, height=_BOX, rx=10, class_="box source"),
        text(14, top + 23, numbers.shorten(format_, 17), "title"),
        text(14, top + 41, numbers.size(story.original_bytes(account)), "note"),
    ]


def _step_box(
    x: float, top: float, step: Step, runs: list[StepRun], all_runs: Sequence[StepRun], candidate: str
) -> list[Markup]:
    parts = [
        element("rect", x=x, y=top, width=_STEP_W, height=_BOX, rx=10, class_=f"box {_state(runs)}"),
        text(x + 12, top + 23, numbers.shorten(step.kind, 24), "title", tip=step.reason),
        text(
            x + 12,
            top + 41,
            numbers.shorten(_options(step) or step.toolchain, _NOTE),
            "note",
            tip=_options(step, full=True),
        ),
        text(x + _STEP_W - 12, top + 41, _time(runs), "note", "end"),
    ]
    for i, fallback in enumerate(step.fallbacks):
        tried = _runs_of(all_runs, candidate, fallback)
        y = top + _BOX + 16 + i * _FALLBACK
        words = f"else {_difference(step, fallback)}" + (f": {_WORDS[tried[-1].state]}" if tried else "")
        parts.append(element("path", d=f"M{x + 12} {y - 14} v6 q0 4 4 4 h4", class_="else"))
        parts.append(text(x + 26, y, numbers.shorten(words, 34), f"fallback {_state(tried)}", tip=fallback.reason))
    return parts


def _proof_box(  # the five facts of a lane's end, and where it is drawn
    x: float, top: float, candidate: Candidate, lane: CandidateAccount | None, account: JobAccount, tone: str
) -> list[Markup]:
    found = story.measured(lane, story.deciding_batch(account))
    facts = [candidate.precision.value]
    if found:
        facts.append(numbers.ms(found.median_ms))
    if lane and lane.size_bytes is not None:
        facts.append(numbers.size(lane.size_bytes))
    verdict = story.verdict_of(account, candidate.id)
    mark = {"winner": "winner", "failed": "dropped", "passed": "passed", "pending": "waiting"}[tone]
    if verdict and tone != "winner":
        mark = verdict.outcome.replace("_", " ")
    return [
        element("rect", x=x, y=top, width=_PROOF_W, height=_BOX, rx=10, class_=f"box end {tone}"),
        text(x + 12, top + 23, numbers.shorten(candidate.id, 17), "title", tip=f"{candidate.id}: {candidate.reason}"),
        text(x + _PROOF_W - 12, top + 23, mark, f"mark {tone}", "end"),
        text(x + 12, top + 41, " · ".join(facts), "note"),
    ]


def _tone(lane: CandidateAccount | None, won: bool) -> str:
    if won:
        return "winner"
    if lane is None or lane.state in ("pending", "converted"):
        return "pending"
    return "passed" if lane.state == "passed" else "failed"


def _state(runs: Sequence[StepRun]) -> str:
    return runs[-1].state.value if runs else "pending"


def _time(runs: Sequence[StepRun]) -> str:
    if not runs:
        return ""
    last = runs[-1]
    if last.cached_from:
        return "reused"
    return numbers.duration(last.usage.wall_s) if last.usage else _WORDS[last.state]


def _runs_of(runs: Sequence[StepRun], candidate: str, step: Step) -> list[StepRun]:
    """Return the runs of ``step``: same candidate, kind and options, defaults written out on both sides."""
    wanted = _typed(step.kind, step.options)
    return [r for r in runs if (r.contender, r.kind) == (candidate, step.kind) and _typed(r.kind, r.options) == wanted]


def _typed(kind: str, options: dict[str, Any]) -> Any:
    try:
        return parse_options(kind, options)
    except InvalidDocument:
        # A plan that never passed the validator is drawn too.
        return options


def _options(step: Step, *, full: bool = False) -> str:
    """Return the options in words; as many as the box holds, or all of them."""
    words = [_word(key, value) for key, value in step.options.items()]
    while not full and len(words) > 1 and len(", ".join(words)) > _NOTE:
        words.pop()
    return ", ".join(words)


def _difference(step: Step, fallback: Step) -> str:
    if step.kind != fallback.kind:
        return fallback.kind
    changed = [_word(k, v) for k, v in fallback.options.items() if step.options.get(k) != v]
    return ", ".join(changed) or fallback.toolchain


def _word(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return key if value else f"no {key}"
    return str(value) if isinstance(value, str) else f"{key} {value}"
