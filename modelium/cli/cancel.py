"""``modelium cancel``."""

from __future__ import annotations

import click

from modelium.cli.output import console, json_option, open_context, print_json


@click.command("cancel")
@click.argument("job")
@json_option
@click.pass_context
def command(ctx: click.Context, job: str, as_json: bool) -> int:
    """End JOB: at once when nobody works on it, else within seconds."""
    from modelium import jobs
    from schemas.job import ENDS

    context = open_context(ctx)
    state = jobs.cancel(context.database, jobs.find(context.database, job).id)
    found = jobs.find(context.database, job)
    if as_json:
        print_json(found)
    elif state in ENDS:
        console().print(f"Job {found.id[:12]} is cancelled.")
    else:
        console().print(f"Job {found.id[:12]} is being stopped while {state.value}.")
    return 0
