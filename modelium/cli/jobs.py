"""``modelium jobs``."""

from __future__ import annotations

import time

import click

from modelium.cli.output import console, json_option, open_context, print_json


@click.command("jobs")
@click.option("--active", is_flag=True, help="Only those that have not ended.")
@click.option(
    "--follow", "follow_", is_flag=True, help="Show live progress until every job has ended, then the results."
)
@click.option("--expect", type=click.IntRange(min=1), help="With --follow: wait until so many jobs exist.")
@json_option
@click.pass_context
def command(ctx: click.Context, active: bool, follow_: bool, expect: int | None, as_json: bool) -> int:
    """List the jobs, oldest first."""
    from modelium import jobs
    from modelium.account import build
    from modelium.cli import display

    context = open_context(ctx)
    if follow_:
        _follow(ctx, expect or 1)
        accounts = [build(context, job.id) for job in jobs.everything(context.database)]
        if as_json:
            print_json({"jobs": accounts})
        else:
            display.summary_table(console(), accounts)
        return 0
    listed = jobs.everything(context.database, active=active)
    if as_json:
        print_json({"jobs": listed})
    else:
        display.jobs_table(console(), listed)
    return 0


def _follow(ctx: click.Context, expect: int) -> None:
    from modelium import follow
    from modelium.cli import display
    from schemas.job import ENDS

    context = open_context(ctx)
    seen: dict[str, follow.Update] = {}
    with display.LiveBoard(console(stderr=True)) as board:
        while True:
            updates = follow.look(context)
            for update in updates:
                if seen.get(update.job_id) != update:
                    seen[update.job_id] = update
                    board.update(**vars(update))
            if len(updates) >= expect and all(update.state in ENDS for update in updates):
                return
            time.sleep(follow.POLL_S)
