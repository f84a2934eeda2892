"""``modelium logs``."""

from __future__ import annotations

import json
import time

import click

from modelium.cli.output import json_option, open_context, print_json
from modelium.context import Context
from schemas.step_run import StepRun, StepRunState

POLL_S = 0.25


@click.command("logs")
@click.argument("job")
@click.option("--follow", "-f", is_flag=True, help="Go on showing what is printed until the job has ended.")
@json_option
@click.pass_context
def command(ctx: click.Context, job: str, follow: bool, as_json: bool) -> int:
    """Show what the steps of JOB printed, and how each ended.

    With --follow and --json every piece is one line of JSON.
    """
    from modelium import jobs, step_runs

    context = open_context(ctx)
    found = jobs.find(context.database, job)
    if follow:
        _follow(context, found.id, found.attempt, as_json=as_json)
        return 0
    runs = step_runs.of_job(context.database, found.id, found.attempt)
    if as_json:
        print_json({"job_id": found.id, "steps": runs})
        return 0
    for run in runs:
        click.echo(f"=== {_title(run)}")
        _echo_end(run, run.log)
    return 0


def _title(run: StepRun) -> str:
    what = f"{run.kind}{f' for {run.contender}' if run.contender else ''}"
    if run.state is StepRunState.RUNNING:
        return what
    spent = f" in {run.usage.wall_s:.1f} s{' with a GPU' if run.usage.gpus else ''}" if run.usage else ""
    return f"{what}: {'reused' if run.cached_from else f'{run.state.value}{spent}'}"


def _echo_end(run: StepRun, text: str) -> None:
    if run.error is not None:
        click.echo(f"{run.error.code}: {run.error.message} {run.error.hint}".rstrip())
    if text.strip() and not run.cached_from:
        click.echo(text.rstrip())


def _follow(context: Context, job_id: str, attempt: int, *, as_json: bool) -> None:
    """Print what is printed, as it is; several steps may run at once, so each piece says whose it is."""
    from modelium import jobs, step_runs
    from schemas.job import ENDS

    runs: dict[str, StepRun] = {}
    shown: dict[str, int] = {}
    done: set[str] = set()
    speaker, last = "", 0

    def say(run: StepRun, text: str, title: str) -> None:
        nonlocal speaker
        if as_json:
            piece = {"step": run.id, "kind": run.kind, "contender": run.contender, "state": run.state, "text": text}
            click.echo(json.dumps(piece))
            return
        if speaker != title:
            speaker = title
            click.echo(f"=== {title}")
        if text.strip():
            click.echo(text.rstrip("\n"))

    while True:
        over = jobs.find(context.database, job_id).state in ENDS
        states = step_runs.states(context.database, job_id, attempt)
        for run_id, _ in states:
            if run_id not in runs:
                runs[run_id] = step_runs.load(context.database, run_id)
        for piece in step_runs.live(context.database, job_id, last):
            last = piece.id
            run = runs.get(piece.step_run_id)
            if run is not None and run.id not in done:
                shown[run.id] = shown.get(run.id, 0) + len(piece.text)
                say(run, piece.text, _title(run.model_copy(update={"state": StepRunState.RUNNING})))
        for run_id, state in states:
            if state is not StepRunState.RUNNING and run_id not in done:
                done.add(run_id)
                run = runs[run_id] = step_runs.load(context.database, run_id)
                rest = "" if run.cached_from else run.log[shown.get(run_id, 0) :]
                failure = f"\n{run.error.code}: {run.error.message} {run.error.hint}".rstrip() if run.error else ""
                say(run, rest + failure, _title(run))
        if over:
            return
        time.sleep(POLL_S)
