"""What every command shares: the context, the JSON switch, and how an error is shown.

What takes long to import is imported where it is needed: a drop may be handed in without it.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

    from modelium.context import Context
    from schemas.errors import ModeliumError

json_option: Callable[[Any], Any] = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")


def open_context(ctx: click.Context, *, quiet: bool = True) -> Context:
    """Return the context of the command; its logs go to standard error."""
    from modelium import logs, settings
    from modelium.context import Context

    loaded = settings.load(home=ctx.find_root().obj)
    logs.configure(loaded, quiet=quiet)
    return Context(loaded)


def console(*, stderr: bool = False) -> Console:
    """Return the console to print to."""
    from rich.console import Console

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that is not UTF-8 still shows the rest
    return Console(stderr=stderr, highlight=False)


def print_json(document: object) -> None:
    """Print one JSON document and nothing else."""
    click.echo(json.dumps(_plain(document), indent=2))


def _plain(value: object) -> Any:
    from pydantic import BaseModel

    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def refuse(error: ModeliumError) -> int:
    """Show why a command could not be carried out and return its exit status."""
    if "--json" in sys.argv:
        print_json({"error": error.document()})
    from modelium.report.numbers import visible

    click.echo(f"Error: {visible(str(error.args[0]))}", err=True)
    if error.hint:
        click.echo(f"       {visible(error.hint)}", err=True)
    return error.exit_code
