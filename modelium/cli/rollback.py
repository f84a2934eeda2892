"""``modelium rollback``."""

from __future__ import annotations

import click

from modelium.cli.output import console, json_option, open_context, print_json


@click.command("rollback")
@click.argument("name")
@click.option("--version", "version", type=click.IntRange(min=1), help="The version to serve [default: the one before]")
@json_option
@click.pass_context
def command(ctx: click.Context, name: str, version: int | None, as_json: bool) -> int:
    """Serve the previous version of NAME again."""
    from modelium import deployments

    deployment = deployments.rollback(open_context(ctx), name, version)
    if as_json:
        print_json(deployment)
    else:
        console().print(f"{name} serves version {deployment.version} ({deployment.contender}) from {deployment.entry}.")
    return 0
