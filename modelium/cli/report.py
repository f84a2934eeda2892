"""``modelium report``."""

from __future__ import annotations

import click

from modelium.cli.output import json_option, open_context, print_json


@click.command("report")
@click.argument("job")
@json_option
@click.pass_context
def command(ctx: click.Context, job: str, as_json: bool) -> int:
    """Write the report of JOB as it stands now, and print where it is."""
    from modelium.account import build
    from modelium.report import write

    context = open_context(ctx)
    account = build(context, job)
    path = write(account, context.home.reports / account.job_id[:12])
    if as_json:
        print_json({"job_id": account.job_id, "report": str(path), "json": str(path.parent / "report.json")})
    else:
        click.echo(path)
    return 0
