"""``modelium doctor``."""

from __future__ import annotations

import click

from modelium.cli.output import console, json_option, open_context, print_json


@click.command("doctor")
@click.option("--settings", "show_settings", is_flag=True, help="Also list every setting with its value.")
@json_option
@click.pass_context
def command(ctx: click.Context, show_settings: bool, as_json: bool) -> int:
    """Find out by trying what this machine can do, and say how to mend what it can't."""
    from modelium import doctor

    context = open_context(ctx)
    checks = []
    with console(stderr=True).status("looking") as status:
        for check in doctor.examine(context):
            status.update(f"looked at {check.name}")
            checks.append(check)
    values = context.settings.model_dump(mode="json") if show_settings else {}
    if as_json:
        print_json({"checks": [check.document() for check in checks], **({"settings": values} if values else {})})
    else:
        from modelium.cli import display

        display.doctor_table(console(), [check.document() for check in checks])
        for name, value in values.items():
            console().print(f"MODELIUM_{name.upper()} = {value!r}", markup=False)
    return 1 if any(check.level == "fail" for check in checks) else 0
