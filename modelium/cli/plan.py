"""``modelium plan``."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from modelium.cli.output import console, exit_status, json_option, open_context, print_json


@click.command("plan")
@click.argument("path", type=click.Path(path_type=Path))
@json_option
@click.pass_context
def command(ctx: click.Context, path: Path, as_json: bool) -> int:
    """Analyse the model at PATH and show what would be tried, and why; nothing is converted or kept."""
    from modelium import jobs, tasks
    from modelium.account import build
    from modelium.context import Context
    from modelium.stages.plan import make_plan
    from modelium.submit import submit_path
    from schemas.errors import NotFound, UsageError
    from schemas.job import JobState
    from schemas.target import TargetProfile

    if not path.exists():
        raise NotFound(f"There is no {path}.", hint="Give the path of a model file or a model folder.")
    context = open_context(ctx)
    with tempfile.TemporaryDirectory(prefix="plan-", dir=context.home.root) as folder:
        # A home of its own: the analysis is the same code with the same claims, and leaves nothing behind.
        aside = Context(context.settings.model_copy(update={"home": Path(folder), "database_url": ""}))
        ids = submit_path(aside, path)
        if len(ids) != 1:
            raise UsageError(f"{path} holds {len(ids)} models.", hint="Give one of them.")
        with console(stderr=True).status("analysing"):
            tasks.run_stage(aside, ids[0], "analyze")
        account = build(aside, ids[0])
        if account.state is JobState.PLANNING and account.descriptor is not None:
            sidecar = account.sidecar
            target = (sidecar.target if sidecar else None) or TargetProfile()
            plan, findings = make_plan(aside, account.descriptor, target)
            account = account.model_copy(update={"plan": plan, "plan_findings": findings})
        ended = jobs.find(aside.database, ids[0])
    if as_json:
        keys = ("state", "reason", "hint", "descriptor", "plan", "plan_findings")
        print_json({key: getattr(account, key) for key in keys})
    else:
        from modelium.cli import display

        display.plan(console(), account)
    return 0 if account.plan is not None else exit_status(ended)
