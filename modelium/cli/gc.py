"""``modelium gc``."""

from __future__ import annotations

import click

from modelium.cli.output import console, json_option, open_context, print_json


@click.command("gc")
@click.option("--older-than-days", type=click.FloatRange(min=0), default=7, show_default=True,
              help="Only what belongs to jobs that ended so long ago.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Only say what would be freed.")
@json_option
@click.pass_context
def command(ctx: click.Context, older_than_days: float, dry_run: bool, as_json: bool) -> int:
    """Free step outputs that nothing needs; dropped models and what is deployed are always kept."""
    from modelium.garbage import collect

    collected = collect(open_context(ctx), older_than_days=older_than_days, dry_run=dry_run)
    if as_json:
        print_json({"artifacts": collected.artifacts, "size_bytes": collected.size_bytes, "dry_run": dry_run})
    else:
        verb = "would be freed" if dry_run else "freed"
        console().print(f"{collected.size_bytes / 1e6:.1f} MB in {collected.artifacts} artifacts {verb}.")
    return 0
