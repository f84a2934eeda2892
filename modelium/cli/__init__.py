"""The command line: every command, its exit status, and all printing.

Exit status: 0 deployed or unchanged, 1 our fault, 2 usage, 3 failed, 4 quarantined, 5 needs input, 130 cancelled.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import sys
import threading
from typing import NoReturn

import click

COMMANDS: dict[str, str] = {
    "up": "Start the pipeline: watch the incoming folder, convert, measure, publish",
    "convert": "Take one model, or a folder of them, all the way, here and now",
    "plan": "Analyse a model and show what would be tried, and why",
    "status": "What runs, what waits, what was done",
    "jobs": "List the jobs",
    "show": "The whole story of one job",
    "logs": "What a job's steps printed",
    "retry": "Start a new attempt at a job that has ended",
    "cancel": "End a job",
    "report": "Where a job's report is; write it anew",
    "deployments": "List what is published",
    "rollback": "Serve the previous version of a deployment again",
    "undeploy": "Take a deployment out of the model repository",
    "try": "One sample inference with a deployed model, in the sandbox",
    "gc": "Free what ended jobs left in the store",
    "kubernetes": "What a namespace needs before steps may run in it, for kubectl apply",
    "doctor": "What this machine can do, and how to mend what it can't",
}


class LazyGroup(click.Group):
    """Imports a command's module only when that command runs, so that help is instant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of a person's first day."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, or None when there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"modelium.cli.{'try_model' if cmd_name == 'try' else cmd_name}")
        command = module.command
        assert isinstance(command, click.Command)
        if not any(parameter.name == "home" for parameter in command.params):
            command.params.append(_home_option())
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Say what was probably meant when there is no such command."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f"Did you mean `modelium {near[0]}`?" if near else "`modelium --help` lists them."
            raise click.UsageError(f"There is no command {args[0]!r}. {hint}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        """Run a command; what it refuses is shown as a sentence with its own exit status."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            from modelium.cli.output import refuse
            from schemas.errors import ModeliumError

            if not isinstance(error, ModeliumError):
                raise
            return refuse(error)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list from the table above, without importing any command."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _home_option() -> click.Option:
    """Return ``--home`` for after the command's name, where people write it as often as before it."""

    def choose(ctx: click.Context, parameter: click.Parameter, value: str | None) -> None:
        if value is not None:
            ctx.find_root().obj = value

    return click.Option(
        ["--home"], metavar="DIR", help="The folder everything lives in", expose_value=False, callback=choose
    )


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--home", metavar="DIR", help="The folder everything lives in [default: ~/.modelium, or MODELIUM_HOME]")
@click.version_option(package_name="modelium")
@click.pass_context
def cli(ctx: click.Context, home: str | None) -> None:
    """Drop a model file into a folder; get back a verified, faster, servable model, with the proof.

    \b
    modelium up                      watch ~/.modelium/incoming and convert what is dropped there
    modelium convert model.pt        one model, here and now
    modelium show NAME               what was done to it, with the proof
    """
    ctx.obj = home


def main() -> NoReturn:
    """Run the command line; the entry point of ``modelium``."""
    _leave(_status())


def _status() -> int:
    try:
        status = cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        return 130
    except click.ClickException as error:
        error.show()
        return 2
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    return status if isinstance(status, int) else 0


def _leave(status: int) -> NoReturn:
    """End the process without taking it apart, which takes 0.15 s, and 0.3 after a conversion.

    What is registered for the end is done and all output written, as always. A thread that is to be waited for is.
    """
    if any(not thread.daemon and thread is not threading.main_thread() for thread in threading.enumerate()):
        sys.exit(status)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BrokenPipeError, ValueError):  # nobody reads, or it is closed
            stream.flush()
    os._exit(status)
