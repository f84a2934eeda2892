"""``modelium deployments``."""

from __future__ import annotations

import click

from modelium.cli.output import console, json_option, open_context, print_json


@click.command("deployments")
@click.option("--all", "all_", is_flag=True, help="Also previous and retired versions.")
@json_option
@click.pass_context
def command(ctx: click.Context, all_: bool, as_json: bool) -> int:
    """List what is published."""
    from modelium import deployments
    from schemas.deployment import DeploymentState

    context = open_context(ctx)
    listed = [d for d in deployments.everything(context) if all_ or d.state is DeploymentState.ACTIVE]
    if context.settings.triton_url:
        from deployer.health import check

        url = context.settings.triton_url
        listed = [d.model_copy(update={"health": check(url, d.name, d.version)}) for d in listed]
    if as_json:
        print_json({"deployments": listed})
    else:
        from modelium.cli import display

        display.deployments_table(console(), listed)
    return 0
