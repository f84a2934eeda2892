"""``modelium status``."""

from __future__ import annotations

from collections import Counter

import click

from modelium.cli.output import console, json_option, open_context, print_json


@click.command("status")
@json_option
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> int:
    """Show whether `modelium up` runs, what it works on, and how jobs ended."""
    from modelium import deployments, follow
    from modelium.cli import display
    from schemas.deployment import DeploymentState
    from schemas.job import ENDS

    context = open_context(ctx)
    updates = follow.look(context)
    counts = Counter(update.state.value for update in updates)
    running = [update for update in updates if update.state not in ENDS]
    active = [d for d in deployments.everything(context) if d.state is DeploymentState.ACTIVE]
    up = context.home.is_up()
    if as_json:
        print_json(
            {
                "up": up,
                "home": str(context.home.root),
                "jobs": dict(counts),
                "active": [{**vars(update), "state": update.state.value} for update in running],
                "deployments": len(active),
                "store_bytes": context.store.size_bytes(),
            }
        )
        return 0
    out = console()
    out.print(f"home         {context.home.root}", markup=False)
    out.print(f"pipeline     {'runs' if up else 'does not run; start it with `modelium up`'}", markup=False)
    out.print(f"jobs         {', '.join(f'{n} {state}' for state, n in counts.items()) or 'none yet'}", markup=False)
    out.print(f"deployments  {len(active)}")
    out.print(f"store        {context.store.size_bytes() / 1e6:.1f} MB")
    with display.LiveBoard(out) as board:
        for update in running:
            board.update(**vars(update))
    return 0
