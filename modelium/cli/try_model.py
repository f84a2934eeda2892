"""``modelium try``."""

from __future__ import annotations

import click

from modelium.cli.output import console, json_option, open_context, print_json


@click.command("try")
@click.argument("name")
@click.option("--rows", type=click.IntRange(1, 64), default=1, show_default=True, help="Rows in the sample's batch.")
@json_option
@click.pass_context
def command(ctx: click.Context, name: str, rows: int, as_json: bool) -> int:
    """Run one sample inference with the deployed model NAME, in the sandbox."""
    from modelium import trial
    from schemas.evidence import TryReport

    context = open_context(ctx)
    with console(stderr=True).status(f"running {name}"):
        report: TryReport = trial.run(context, name, rows=rows)
    if as_json:
        print_json(report)
        return 0
    out = console()
    for spec in report.inputs:
        out.print(f"in   {spec.name}  {spec.dtype} {list(spec.shape)}", markup=False)
    for output, values in report.outputs.items():
        out.print(f"out  {output}  {list(report.shapes[output])}  {values}", markup=False)
    out.print(f"{report.latency_ms:.2f} ms")
    return 0
