"""``modelium undeploy``."""

from __future__ import annotations

import click

from modelium.cli.output import console, json_option, open_context, print_json


@click.command("undeploy")
@click.argument("name")
@json_option
@click.pass_context
def command(ctx: click.Context, name: str, as_json: bool) -> int:
    """Take NAME out of the model repository; the models stay in the store."""
    from modelium import deployments

    versions = deployments.undeploy(open_context(ctx), name)
    if as_json:
        print_json({"name": name, "versions": versions})
    else:
        console().print(f"{name} is no longer in the model repository ({versions} versions).")
    return 0
