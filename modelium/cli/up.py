"""``modelium up``."""

from __future__ import annotations

import signal
import time

import click

from modelium.cli.output import console, json_option, open_context


@click.command("up")
@click.option("--until-idle", is_flag=True, help="End when every job has ended and nothing new has come for a while.")
@json_option
@click.pass_context
def command(ctx: click.Context, until_idle: bool, as_json: bool) -> int:
    """Watch the home's incoming folder; convert, prove, measure and publish what is dropped there.

    Starts an embedded Redis broker and Celery workers that end with it. Stop it with Ctrl-C; whatever it was doing goes
    on at the next start. With --json, every change of a job is one line of JSON.
    """
    from modelium import follow
    from modelium.cli import display
    from modelium.supervisor import Supervisor
    from schemas.job import ENDS

    context = open_context(ctx, quiet=True)
    supervisor = Supervisor(context)
    signal.signal(signal.SIGTERM, lambda *_: supervisor.stop())
    signal.signal(signal.SIGINT, lambda *_: supervisor.stop())
    out = console()
    if not as_json:
        out.print(f"Modelium watches {context.home.incoming}; drop a model there. Ctrl-C ends it.", markup=False)
    # What had ended before is no news.
    seen = {update.job_id: update for update in follow.look(context) if update.state in ENDS}
    changed = time.monotonic()
    quiet_s = context.settings.folder_quiet_s + 3 * max(context.settings.settle_s, 1)
    with display.LiveBoard(out, quiet=as_json) as board:

        def tick() -> bool:
            nonlocal changed
            updates = follow.look(context)
            for update in updates:
                if seen.get(update.job_id) == update:
                    continue
                seen[update.job_id] = update
                changed = time.monotonic()
                if as_json:
                    click.echo(_line(update))
                board.update(**vars(update))
            idle = all(update.state in ENDS for update in updates)
            return not (until_idle and idle and time.monotonic() - changed > quiet_s)

        supervisor.run(tick)
    return 0


def _line(update: object) -> str:
    import json

    return json.dumps({key: str(v) if hasattr(v, "value") else v for key, v in vars(update).items()})
