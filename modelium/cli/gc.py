"""``modelium gc``."""

from __future__ import annotations

from dataclasses import asdict

import click

from modelium.cli.output import console, json_option, open_context, print_json


@click.command("gc")
@click.option("--older-than-days", type=click.FloatRange(min=0), default=7, show_default=True,
              help="Only what belongs to jobs that ended so long ago.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Only say what would be freed.")
@json_option
@click.pass_context
def command(ctx: click.Context, older_than_days: float, dry_run: bool, as_json: bool) -> int:
    """Free step outputs that nothing needs; dropped models and what is deployed are always kept.

    With MODELIUM_STORE_URL also frees the bucket of what was not used for a day, and this machine of old drops that the
    bucket keeps.
    """
    from modelium.garbage import collect

    collected = collect(open_context(ctx), older_than_days=older_than_days, dry_run=dry_run)
    if as_json:
        print_json({**asdict(collected), "dry_run": dry_run})
    else:
        verb = "would be freed" if dry_run else "freed"
        console().print(f"{collected.size_bytes / 1e6:.1f} MB in {collected.artifacts} artifacts {verb}.")
        if collected.bucket_bytes or collected.evicted:
            console().print(
                f"{collected.bucket_bytes / 1e6:.1f} MB freed in the bucket; of {collected.evicted} dropped models the "
                "copy here was dropped, which is fetched again when it is needed."
            )
    return 0
