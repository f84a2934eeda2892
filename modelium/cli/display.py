"""Display: jobs, candidates and deployments as a person reads them in a terminal.

Everything is drawn from documents. Text that came from a model or a person is never markup, and its control characters
are shown instead of obeyed. Without a terminal the same lines come without colour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from modelium.cli.live_board import BUSY_STYLE, STATE_STYLES, LiveBoard
from modelium.report import numbers, story
from schemas.account import CandidateAccount, JobAccount
from schemas.deployment import Deployment, DeploymentState
from schemas.job import Job, JobState
from schemas.plan import ORIGINAL, ConversionPlan, Step
from schemas.step_run import StepRun

__all__ = [
    "LiveBoard",
    "account",
    "deployments_table",
    "doctor_table",
    "jobs_table",
    "plan",
    "steps_table",
    "summary_table",
]

_INDENT = 13
_SEVERITY_STYLES = {"danger": "bold red", "unknown": "yellow", "info": "dim"}
_OUTCOME_STYLES = {"winner": "green", "failed": "red", "not allowed": "yellow", "baseline": "dim"}
_LEVEL_STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}
_DEPLOYMENT_STYLES = {DeploymentState.ACTIVE: "green"}


def account(console: Console, account: JobAccount) -> None:
    """Print the short story of one job: what it is, how it ended and why, its candidates, and what to do next."""
    told = story.tell(account)
    _title(console, account, told)
    _reason(console, account, told)
    _findings(console, account)
    if account.candidates:
        console.print()
        console.print(_candidates(console, account))
        _dropped(console, account)
    _where(console, account)


def steps_table(console: Console, steps: Sequence[StepRun]) -> None:
    """Print what every step used: seconds, CPU seconds, memory at its peak and what was reserved for it."""
    if not steps:
        return
    table = _table("step", "candidate", "", ">wall", ">CPU", ">peak", ">reserved")
    for run in steps:
        usage = run.usage if not run.cached_from else None
        table.add_row(
            _safe(run.kind),
            _safe(run.contender or ""),
            Text("reused" if run.cached_from else run.state.value, style="dim"),
            Text(numbers.duration(usage.wall_s) if usage else numbers.NOTHING),
            Text(numbers.duration(usage.cpu_s) if usage and usage.cpu_s is not None else numbers.NOTHING),
            Text(numbers.size(usage.peak_memory_bytes) if usage and usage.peak_memory_bytes else numbers.NOTHING),
            Text(numbers.size(run.reserved_memory_bytes) if run.reserved_memory_bytes else numbers.NOTHING),
        )
    console.print()
    console.print(table)


def plan(console: Console, account: JobAccount) -> None:
    """Print what is known of a model and what would be tried, with the reasons; the refusal where there is no plan."""
    told = story.tell(account)
    _title(console, account, told, state=account.plan is None)
    descriptor = account.descriptor
    if descriptor is not None:
        rows = [
            *(("input", f"{t.name}  {t.dtype} [{', '.join(map(str, t.shape))}]") for t in descriptor.inputs[:12]),
            *(("output", f"{t.name}  {t.dtype} [{', '.join(map(str, t.shape))}]") for t in descriptor.outputs[:12]),
            *(("note", note) for note in descriptor.notes),
        ]
        _pairs(console, rows)
    if account.plan is None:
        _reason(console, account, told)
        _findings(console, account)
        return
    _findings(console, account)
    _paragraph(console, account.plan.reason)
    _plan(console, account.plan)
    for finding in account.plan_findings:
        style = "red" if finding.level.value == "error" else "yellow"
        console.print(Text.assemble((f"{finding.level.value}: ", style), _safe(finding.message)))


def summary_table(console: Console, accounts: Sequence[JobAccount]) -> None:
    """Print what was won by each model that has a winner, then where every model went or why it did not."""
    if not accounts:
        console.print("No jobs yet.", style="dim")
        return
    stories = [story.tell(each) for each in accounts]
    won = [(each, told) for each, told in zip(accounts, stories, strict=True) if told.winner]
    if won:
        console.print(_won(console, won))
        console.print()
    for each, told in zip(accounts, stories, strict=True):
        line = Text.assemble((told.title.lower().ljust(_INDENT), _style(each.state)), (_name(told.name, 60), "bold"))
        if each.descriptor:
            line.append(f"  {each.descriptor.format.value.replace('_', ' ')}", style="dim")
        console.print(line, soft_wrap=True)
        if not each.deployment and told.reason:
            _indented(console, _safe(told.reason, 400), _INDENT)
        for path in (each.deployment.entry if each.deployment else None, each.report):
            if path:
                console.print(Text.assemble(" " * _INDENT, (_safe(path).plain, "dim")), soft_wrap=True)


def _won(console: Console, won: Sequence[tuple[JobAccount, story.Story]]) -> Table:
    arrow = _arrow(console)
    wide = console.width >= 100
    batches = {told.batch for _, told in won}
    latency = f">latency, batch {batches.copy().pop()}" if len(batches) == 1 else ">latency"
    columns = [
        "model",
        *(["format"] if wide else []),
        "winner",
        latency,
        *([">speed"] if wide else []),
        ">size",
        "parity",
    ]
    table = _table(*columns, gap=2 if wide else 1)
    for each, told in won:
        assert told.winner is not None
        batch = f" b{told.batch}" if len(batches) > 1 and told.batch is not None else ""
        row = [Text(_name(told.name, 28 if wide else 16), style="bold")]
        if wide:
            row.append(Text(each.descriptor.format.value if each.descriptor else numbers.NOTHING))
        row.append(Text(_name(told.winner.id, 28 if wide else 14)))
        row.append(_before_after(numbers.ms(told.before_ms), numbers.ms(told.after_ms), arrow, batch))
        if wide:
            row.append(Text(numbers.times(None if told.kept_original else told.factor)))
        row.append(_before_after(numbers.size(told.before_bytes), numbers.size(told.after_bytes), arrow))
        row.append(Text("the original" if told.kept_original else told.parity or numbers.NOTHING))
        table.add_row(*row)
    return table


def jobs_table(console: Console, jobs: Sequence[Job]) -> None:
    """Print one line a job."""
    if not jobs:
        console.print("No jobs yet.", style="dim")
        return
    names = [_name(job.name or story.file_name(job.uri), 28) for job in jobs]
    # What is left of the line once the other columns have theirs.
    room = max(12, console.width - 12 - max(map(len, names)) - 11 - 11 - 4 * 2)
    table = _table("job", "model", "state", "since", "reason")
    for job, name in zip(jobs, names, strict=True):
        reason = Text(numbers.visible(job.reason or "", lines=False))
        reason.truncate(room, overflow="ellipsis")
        table.add_row(
            _safe(job.id[:12]),
            Text(name, style="bold"),
            Text(job.state.value.replace("_", " "), style=_style(job.state)),
            Text(f"{job.updated_at:%m-%d %H:%M}", style="dim"),
            reason,
        )
    console.print(table)


def deployments_table(console: Console, deployments: Sequence[Deployment]) -> None:
    """Print one line a published version, with its folder below it."""
    if not deployments:
        console.print("Nothing is deployed yet.", style="dim")
        return
    table = _table("name", ">version", "state", "contender", "health", ">batch", "since")
    for each in deployments:
        table.add_row(
            Text(_safe(each.name).plain, style="bold"),
            Text(str(each.version)),
            Text(each.state.value, style=_DEPLOYMENT_STYLES.get(each.state, "dim")),
            _safe(each.contender),
            Text(each.health.state, style={"ready": "green", "failed": "red"}.get(each.health.state, "dim")),
            Text(str(each.spec.max_batch_size or 1)),
            Text(f"{each.created_at:%m-%d %H:%M}", style="dim"),
        )
    console.print(table)
    console.print()
    for entry in dict.fromkeys(each.entry for each in deployments):
        console.print(_safe(entry), style="dim", soft_wrap=True)


def doctor_table(console: Console, checks: Sequence[Mapping[str, Any]]) -> None:
    """Print checks, documents with ``name``, ``level`` (ok, warn, fail), ``found``, and ``mend`` for what is not ok."""
    table = _table("level", "check", "found", header=False)
    for check in checks:
        level = str(check["level"])
        found = _safe(str(check["found"]), 600)
        if level != "ok" and check.get("mend"):
            found.append("\n").append_text(_safe(str(check["mend"]), 600))
        table.add_row(
            Text(level, style=_LEVEL_STYLES.get(level, "")), Text(_safe(str(check["name"])).plain, style="bold"), found
        )
    console.print(table)


def _title(console: Console, account: JobAccount, told: story.Story, *, state: bool = True) -> None:
    text = Text(_safe(told.name).plain, style="bold")
    if state:
        text.append("  ").append(told.title.lower(), style=_style(account.state))
    file = story.file_name(account.job.uri)
    descriptor = account.descriptor
    facts = [
        _safe(file).plain if file != told.name else "",
        descriptor.format.value.replace("_", " ") if descriptor else "",
        _safe(descriptor.architecture or "", 60).plain if descriptor else "",
        _safe(descriptor.task or "", 60).plain if descriptor else "",
        numbers.size(told.before_bytes) if told.before_bytes is not None else "",
        f"{numbers.count(descriptor.parameter_count)} parameters" if descriptor and descriptor.parameter_count else "",
    ]
    console.print(text)
    console.print(Text(", ".join(fact for fact in facts if fact), style="dim"))


def _reason(console: Console, account: JobAccount, told: story.Story) -> None:
    verdict = account.verdict.reason if account.verdict and told.tone in ("good", "calm") else ""
    if verdict or told.reason:
        _paragraph(console, verdict or told.reason)
    if before := story.measured_before(account):
        _paragraph(console, before)
    if told.unsteady:
        _paragraph(console, "The machine was not steady while measuring; measure again before relying on the factor.")
    if told.hint:
        label = "how to answer" if told.state is JobState.NEEDS_INPUT else "what to do"
        console.print(Text(label, style="dim"))
        _indented(console, _safe(told.hint), 2)


def _findings(console: Console, account: JobAccount) -> None:
    found = [f for f in account.descriptor.findings if f.severity.value != "info"] if account.descriptor else []
    if not found:
        return
    console.print()
    for finding in found[:12]:
        text = Text.assemble(
            (f"{finding.severity.value:<9}", _SEVERITY_STYLES[finding.severity.value]), _safe(finding.message)
        )
        detail = ", ".join(part for part in (finding.subject, finding.where) if part)
        if detail:
            text.append_text(Text(f"  ({_safe(detail).plain})", style="dim"))
        _hanging(console, text, 9)
    if len(found) > 12:
        console.print(Text(f"and {len(found) - 12} more", style="dim"))


def _candidates(console: Console, account: JobAccount) -> Table:
    batches = sorted({m.batch for candidate in account.candidates for m in candidate.measurements})
    # Eighty columns hold three batch sizes; the report has all of them.
    shown = batches[: 3 if console.width < 110 else 5]
    table = _table("candidate", "", *(f">b{batch} ms" for batch in shown), ">speed", ">size", "parity", "outcome")
    for candidate in account.candidates:
        verdict = story.verdict_of(account, candidate.id)
        outcome = _outcome(account, candidate)
        speed = verdict.speedup if verdict and candidate.id != ORIGINAL else None
        style = "bold green" if candidate.id == account.winner else ""
        cells = [Text(_safe(candidate.id).plain, style=style), Text(candidate.precision.value, style="dim")]
        for batch in shown:
            found = story.measured(candidate, batch)
            cells.append(Text(numbers.significant(found.median_ms) if found else numbers.NOTHING))
        parity = "" if candidate.id == ORIGINAL or not candidate.parity else story.parity_text(candidate.parity)
        cells += [
            Text(numbers.times(speed), style=style),
            Text(numbers.size(story.candidate_bytes(account, candidate))),
            _safe(parity or numbers.NOTHING),
            Text(outcome, style=_OUTCOME_STYLES.get(outcome, "")),
        ]
        table.add_row(*cells)
    return table


def _outcome(account: JobAccount, candidate: CandidateAccount) -> str:
    if candidate.id == account.winner:
        return "winner"
    if candidate.id == ORIGINAL:
        return "baseline"
    verdict = story.verdict_of(account, candidate.id)
    return (verdict.outcome if verdict else candidate.state).replace("_", " ")


def _dropped(console: Console, account: JobAccount) -> None:
    for candidate in account.candidates:
        verdict = story.verdict_of(account, candidate.id)
        reason = verdict.reason if verdict else candidate.reason
        if reason and _outcome(account, candidate) not in ("winner", "baseline", "passed", "pending"):
            _hanging(console, Text.assemble((_name(candidate.id, 40), "bold"), f": {_safe(reason, 500).plain}"), 2)


def _where(console: Console, account: JobAccount) -> None:
    rows = []
    deployment = account.deployment
    if deployment:
        rows.append(("deployed", f"{deployment.name} version {deployment.version}"))
        rows.append(("entry", deployment.entry))
        if deployment.manifest:
            rows.append(("manifest", deployment.manifest))
    if account.report:
        rows.append(("report", account.report))
    _pairs(console, rows)
    for label, snippet in deployment.next_steps.items() if deployment else ():
        if "\n" in snippet.strip():
            continue  # a script of many lines is for the report
        console.print(Text(f"\n{_safe(label).plain}", style="dim"))
        console.print(Text.assemble("  ", _safe(snippet.strip())), soft_wrap=True)


def _plan(console: Console, plan: ConversionPlan) -> None:
    for candidate in plan.candidates:
        console.print()
        console.print(Text.assemble((_safe(candidate.id).plain, "bold"), (f"  {candidate.precision.value}", "dim")))
        _indented(console, _safe(candidate.reason), 2)
        for step in candidate.steps:
            _step(console, step, "")
            for fallback in step.fallbacks:
                _step(console, fallback, "else ")


def _step(console: Console, step: Step, prefix: str) -> None:
    options = ", ".join(f"{key}={value}" for key, value in step.options.items())
    text = Text.assemble((prefix, "dim"), (_safe(step.kind).plain, BUSY_STYLE), (f"  {_safe(options).plain}", "dim"))
    _indented(console, text, 2)
    _indented(console, Text(_safe(step.reason).plain, style="dim"), 4)


def _pairs(console: Console, rows: Sequence[tuple[str, str]]) -> None:
    if not rows:
        return
    console.print()
    width = max(len(label) for label, _ in rows) + 2
    for label, value in rows:
        # Paths stay in one piece, so that they can be copied.
        console.print(Text.assemble((label.ljust(width), "dim"), _safe(value)), soft_wrap=True)


def _indented(console: Console, text: Text, columns: int) -> None:
    for line in text.wrap(console, max(20, console.width - columns)):
        console.print(Text.assemble(" " * columns, line), soft_wrap=True)


def _hanging(console: Console, text: Text, columns: int) -> None:
    """Print ``text`` with every line after the first set in by ``columns``."""
    for i, line in enumerate(text.wrap(console, max(20, console.width - columns))):
        console.print(Text.assemble(" " * (columns if i else 0), line), soft_wrap=True)


def _paragraph(console: Console, text: str) -> None:
    console.print()
    console.print(_safe(text))


def _table(*names: str, header: bool = True, gap: int = 2) -> Table:
    """Return a table without lines; a name that begins with > is a column of numbers."""
    table = Table(box=None, show_header=header, header_style="dim", padding=(0, gap, 0, 0), pad_edge=False)
    for name in names:
        if name.startswith(">"):
            table.add_column(name[1:], justify="right", no_wrap=True)
        else:
            folds = name in ("candidate", "found", "model", "name")
            table.add_column(name, overflow="fold", no_wrap=not folds)
    return table


def _before_after(before: str, after: str, arrow: str, note: str = "") -> Text:
    if before == numbers.NOTHING and after == numbers.NOTHING:
        return Text(numbers.NOTHING)
    if after == numbers.NOTHING:
        return Text.assemble(before, (note, "dim"))
    # "14.3 -> 5.04 ms": a unit that both share is said once.
    number, _, unit = before.rpartition(" ")
    shared = number and after.endswith(f" {unit}")
    return Text.assemble((number if shared else before, "dim"), f" {arrow} ", after, (note, "dim"))


def _arrow(console: Console) -> str:
    return "→" if console.encoding.lower().startswith("utf") else "->"


def _style(state: JobState) -> str:
    return STATE_STYLES.get(state, BUSY_STYLE)


def _name(text: str, limit: int) -> str:
    return numbers.shorten(numbers.visible(text, lines=False), limit)


def _safe(text: str, limit: int = 2000) -> Text:
    """Return text from outside as plain text: no markup, no control characters, no endless lines."""
    return Text(numbers.shorten(numbers.visible(text), limit))
