"""``modelium show``."""

from __future__ import annotations

import click

from modelium.cli.output import console, json_option, open_context, print_json


@click.command("show")
@click.argument("job")
@json_option
@click.pass_context
def command(ctx: click.Context, job: str, as_json: bool) -> int:
    """Show the whole story of JOB: an id, the beginning of one, or a name."""
    from modelium.account import build

    account = build(open_context(ctx), job)
    if as_json:
        print_json(account)
    else:
        from modelium.cli import display

        display.account(console(), account)
        display.steps_table(console(), account.steps)
    return 0
