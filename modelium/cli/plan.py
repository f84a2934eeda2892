"""``modelium plan``."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from modelium.cli.output import console, json_option, open_context, print_json
from modelium.cli.target_options import chosen_target, target_options


@click.command("plan")
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
    """Analyse the model at PATH and show what would be tried, and why; nothing is converted or kept."""
    from modelium import jobs, tasks
    from modelium.account import build
    from modelium.context import Context
    from modelium.exit_status import exit_status
    from modelium.stages.analyze import as_it_is
    from modelium.stages.plan import make_plan
    from modelium.submit import submit_path
    from planner.language_models import plan_as_it_is
    from schemas.errors import NotFound, UsageError
    from schemas.job import JobState

    if not path.exists():
        raise NotFound(f"There is no {path}.", hint="Give the path of a model file or a model folder.")
    target = chosen_target(runtime, precisions, objective, batch_sizes)
    context = open_context(ctx)
    with tempfile.TemporaryDirectory(prefix="plan-", dir=context.home.root) as folder:
        # A home of its own: the analysis is the same code with the same claims, and leaves nothing behind.
        aside = Context(context.settings.model_copy(update={"home": Path(folder), "database_url": ""}))
        ids = submit_path(aside, path, target)
        if len(ids) != 1:
            raise UsageError(f"{path} holds {len(ids)} models.", hint="Give one of them.")
        with console(stderr=True).status("analysing"):
            tasks.run_stage(aside, ids[0], "analyze")
        account = build(aside, ids[0])
        descriptor = account.descriptor
        if account.state is JobState.PLANNING and descriptor is not None:
            server = as_it_is(aside, account.job.target, account.sidecar, descriptor)
            if server is not None:
                plan = plan_as_it_is(descriptor, account.job.target, server)
                account = account.model_copy(update={"plan": plan})
            else:
                plan, findings = make_plan(aside, descriptor, account.job.target)
                account = account.model_copy(update={"plan": plan, "plan_findings": findings})
        ended = jobs.find(aside.database, ids[0])
    if as_json:
        keys = ("state", "reason", "hint", "descriptor", "plan", "plan_findings")
        print_json({key: getattr(account, key) for key in keys})
    else:
        from modelium.cli import display

        display.plan(console(), account)
    return 0 if account.plan is not None else exit_status(ended)
