"""``modelium kubernetes``."""

from __future__ import annotations

import click

from modelium.cli.output import open_context
from schemas.errors import UsageError


@click.command("kubernetes")
@click.pass_context
def command(ctx: click.Context) -> int:
    """Print the namespace, network policy, service account and role that workers and steps need, as YAML.

    \b
    MODELIUM_NAMESPACE=models modelium kubernetes | kubectl apply -f -
    """
    import yaml

    from executor.kubernetes_namespace import manifests

    namespace = open_context(ctx).settings.namespace
    if namespace == "default":
        raise UsageError(
            "The namespace `default` would refuse every pod that is not restricted, other people's too.",
            hint="Name one for models alone: MODELIUM_NAMESPACE=models modelium kubernetes | kubectl apply -f -",
        )
    click.echo(yaml.safe_dump_all(manifests(namespace), sort_keys=False), nl=False)
    return 0
