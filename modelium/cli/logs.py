"""``modelium logs``."""

from __future__ import annotations

import click

from modelium.cli.output import json_option, open_context, print_json


@click.command("logs")
@click.argument("job")
@json_option
@click.pass_context
def command(ctx: click.Context, job: str, as_json: bool) -> int:
    """Show what the steps of JOB printed, and how each ended."""
    from modelium import jobs, step_runs

    context = open_context(ctx)
    found = jobs.find(context.database, job)
    runs = step_runs.of_job(context.database, found.id, found.attempt)
    if as_json:
        print_json({"job_id": found.id, "steps": runs})
        return 0
    for run in runs:
        what = f"{run.kind}{f' for {run.contender}' if run.contender else ''}"
        spent = f" in {run.usage.wall_s:.1f} s" if run.usage else ""
        how = "reused" if run.cached_from else f"{run.state.value}{spent}"
        click.echo(f"=== {what}: {how}")
        if run.error is not None:
            click.echo(f"{run.error.code}: {run.error.message} {run.error.hint}".rstrip())
        if run.log and not run.cached_from:
            click.echo(run.log.rstrip())
    return 0
