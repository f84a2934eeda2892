"""``modelium kubernetes``."""

from __future__ import annotations

import click

from modelium.cli.output import open_context


@click.command("kubernetes")
@click.pass_context
def command(ctx: click.Context) -> int:
    """Print the namespace, network policy, service account and role that workers and steps need, as YAML.

    \b
    modelium kubernetes | kubectl apply -f -
    """
    import yaml

    from executor.kubernetes_namespace import manifests

    click.echo(yaml.safe_dump_all(manifests(open_context(ctx).settings.namespace), sort_keys=False), nl=False)
    return 0
