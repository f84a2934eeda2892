"""``modelium convert``."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modelium.cli.output import console, json_option, open_context, print_json
from modelium.cli.target_options import chosen_target, target_options

if TYPE_CHECKING:
    from modelium.cli.live_board import LiveBoard
    from modelium.hand_in import HandedIn
    from schemas.account import JobAccount
    from schemas.errors import NotFound


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
    from modelium.hand_in import hand_in

    if not path.exists():
        raise _nothing(f"There is no {path}.", hint="Give the path of a model file or a model folder.")
    target = chosen_target(runtime, precisions, objective, batch_sizes)
    named = target.model_dump(mode="json", exclude_unset=True) if target is not None else None
    handed = hand_in(ctx.find_root().obj, path, named)
    ids = None
    if handed is not None:
        status = _beside(handed, path, as_json=as_json)
        if status is not None:
            return status
        ids = handed.job_ids
    from ingestion.drops import is_group

    if ids is None:
        from modelium.submit import submit_path

        ids = submit_path(open_context(ctx), path, target)
    _some(ids, path)
    return finish(ctx, ids, as_json=as_json, one=len(ids) == 1 and not is_group(path))


def _beside(handed: HandedIn, path: Path, *, as_json: bool) -> int | None:
    """Follow what a ``modelium up`` has taken; None where it leaves the drop, or its end, to this process."""
    with contextlib.ExitStack() as until_told:

        @functools.cache
        def board() -> LiveBoard:
            # Not before there is something to show: what stores the drop meanwhile has the processor.
            from modelium.cli.live_board import LiveBoard

            return until_told.enter_context(LiveBoard(console(stderr=True)))

        def show(update: dict[str, Any]) -> None:
            from schemas.job import JobState

            board().update(**{**update, "state": JobState(update["state"])})

        told = handed.to_the_end(show)
    if told is None:
        return None
    if "error" in told:
        from schemas.errors import ErrorDocument, from_document

        raise from_document(ErrorDocument.model_validate(told["error"]))
    accounts = told["accounts"]
    _some(accounts, path)
    if as_json:
        print_json(accounts[0] if told["one"] else {"jobs": accounts})
    else:
        from schemas.account import JobAccount

        _display([JobAccount.model_validate(account) for account in accounts], one=told["one"])
    return int(told["status"])


def finish(ctx: click.Context, ids: list[str], *, as_json: bool, one: bool) -> int:
    """Follow jobs to their ends, show them, and return the worst exit status."""
    from modelium import follow
    from modelium.account import build
    from modelium.cli.live_board import LiveBoard
    from modelium.exit_status import worst

    context = open_context(ctx)
    with LiveBoard(console(stderr=True)) as board:
        follow.to_the_end(context, ids, lambda update: board.update(**vars(update)))
    accounts = [build(context, job_id) for job_id in ids]
    if as_json:
        print_json(accounts[0] if one else {"jobs": accounts})
    else:
        _display(accounts, one=one)
    return worst(account.job for account in accounts)


def _display(accounts: list[JobAccount], *, one: bool) -> None:
    from modelium.cli import display

    if one:
        display.account(console(), accounts[0])
    else:
        display.summary_table(console(), accounts)


def _some(jobs: Sequence[object], path: Path) -> None:
    if not jobs:
        raise _nothing(f"There is no model in {path}.", hint="Give a model file, a model folder, or a folder of them.")


def _nothing(message: str, *, hint: str) -> NotFound:
    from schemas.errors import NotFound

    return NotFound(message, hint=hint)
