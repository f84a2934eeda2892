"""``modelium retry``."""

from __future__ import annotations

import click

from modelium.cli.convert import finish
from modelium.cli.output import console, json_option, open_context, print_json


@click.command("retry")
@click.argument("job")
@click.option("--no-wait", is_flag=True, help="Only record the attempt; a `modelium up` takes it.")
@json_option
@click.pass_context
def command(ctx: click.Context, job: str, no_wait: bool, as_json: bool) -> int:
    """Start a new attempt at JOB, which has ended; what is in the step cache is not done again."""
    from modelium import jobs

    context = open_context(ctx)
    job_id = jobs.find(context.database, job).id
    jobs.retry(context.database, job_id)
    if not no_wait:
        return finish(ctx, [job_id], as_json=as_json, one=True)
    found = jobs.find(context.database, job_id)
    if as_json:
        print_json(found)
    else:
        console().print(f"Attempt {found.attempt} at {found.id[:12]} waits for `modelium up`.")
    return 0
