"""``modelium convert``."""

from __future__ import annotations

from pathlib import Path

import click

from modelium.cli.output import console, exit_status, json_option, open_context, print_json, worst
from modelium.cli.target_options import chosen_target, target_options


@click.command("convert")
@click.argument("path", type=click.Path(path_type=Path))
@target_options
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    path: Path,
    as_json: bool,
    runtime: str | None,
    precisions: str | None,
    objective: str | None,
    batch_sizes: str | None,
) -> int:
    """Take the model at PATH all the way: analyse, plan, convert, prove, measure, publish.

    Beside a running `modelium up` on the same home the model is submitted and followed; otherwise the stages run here.
    A folder that is no model itself is taken as a folder of models.
    """
    from modelium.submit import submit_path
    from schemas.errors import NotFound

    if not path.exists():
        raise NotFound(f"There is no {path}.", hint="Give the path of a model file or a model folder.")
    target = chosen_target(runtime, precisions, objective, batch_sizes)
    context = open_context(ctx)
    ids = submit_path(context, path, target)
    if not ids:
        raise NotFound(f"There is no model in {path}.", hint="Give a model file, a model folder, or a folder of them.")
    one = len(ids) == 1 and not _is_plain_folder(path)
    return finish(ctx, ids, as_json=as_json, one=one)


def finish(ctx: click.Context, ids: list[str], *, as_json: bool, one: bool) -> int:
    """Follow jobs to their ends, show them, and return the worst exit status."""
    from modelium import follow
    from modelium.account import build
    from modelium.cli import display

    context = open_context(ctx)
    with display.LiveBoard(console(stderr=True)) as board:
        follow.to_the_end(context, ids, lambda update: board.update(**vars(update)))
    accounts = [build(context, job_id) for job_id in ids]
    if as_json:
        print_json(accounts[0] if one else {"jobs": accounts})
    elif one:
        display.account(console(), accounts[0])
    else:
        display.summary_table(console(), accounts)
    return worst([exit_status(account.job) for account in accounts])


def _is_plain_folder(path: Path) -> bool:
    from ingestion.drops import drops

    return path.is_dir() and [arrival.path for arrival in drops(path)] != [path.absolute()]
