"""The options that say what a model is for, shared by ``convert`` and ``plan``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from schemas.objective import Objective
from schemas.precision import Precision
from schemas.runtime import Runtime

if TYPE_CHECKING:
    from schemas.target import TargetProfile


def target_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of a target; it gets them as ``runtime``, ``precisions``, ``objective`` and so on."""
    for option in (
        click.option("--batch-sizes", metavar="1,8", help="Batch sizes to measure; the first one decides latency"),
        click.option("--objective", type=click.Choice([o.value for o in Objective]), help="What the winner is best at"),
        click.option("--precisions", metavar="fp32,int8", help=f"What may win: {', '.join(Precision)}"),
        click.option("--runtime", type=click.Choice([r.value for r in Runtime]), help="What serves the model"),
    ):
        command = option(command)
    return command


def chosen_target(
    runtime: str | None, precisions: str | None, objective: str | None, batch_sizes: str | None
) -> TargetProfile | None:
    """Return what the options name, None when they name nothing. Raises UsageError for what is no target."""
    named: dict[str, Any] = {"runtime": runtime, "objective": objective}
    for key, value in (("precisions", precisions), ("batch_sizes", batch_sizes)):
        named[key] = [part.strip() for part in value.split(",") if part.strip()] if value is not None else None
    named = {key: value for key, value in named.items() if value is not None}
    if not named:
        return None
    from pydantic import ValidationError

    from schemas.errors import UsageError
    from schemas.target import TargetProfile

    try:
        return TargetProfile.model_validate(named)
    except ValidationError as error:
        first = error.errors()[0]
        option = f"--{str(first['loc'][0]).replace('_', '-')}"
        raise UsageError(
            f"{option}: {first['msg']}.", hint="`modelium convert --help` shows what is possible."
        ) from None
