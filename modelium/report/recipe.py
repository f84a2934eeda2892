"""Recipe: how to run one recorded step again by hand, outside Modelium."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass

from schemas.account import JobAccount
from schemas.catalog import CATALOG
from schemas.step_run import StepRun

_MOST_BYTES = 24_000
"""A step file longer than this is shown without its descriptor, which stands in report.json."""

FIND_STORED = """# where an artifact of this job is kept, by sha256; MODELIUM_* as for the command itself
stored() {
  python -P -c 'import sys
from modelium.context import Context
from modelium.settings import load
print(Context(load()).store.path(sys.argv[1]))' "$1"
}"""
"""A shell function that the scripts use; it needs no knowledge of the store's layout."""


@dataclass(frozen=True)
class Recipe:
    """One step, and the script that lays out its workspace, ``step.json`` included, and runs it."""

    run: StepRun
    summary: str
    commands: str
    shortened: bool


def write_down(account: JobAccount) -> tuple[Recipe, ...]:
    """Return the recipes of all recorded steps of the newest attempt, in the order they ran."""
    return tuple(_recipe(account, run) for run in account.steps if run.attempt == account.job.attempt)


def _recipe(account: JobAccount, run: StepRun) -> Recipe:
    from modelium.work import SEED  # with the database behind it, which a terminal's display does not need

    request: dict[str, object] = {
        "schema_version": 1,
        "kind": run.kind,
        "options": run.options,
        "inputs": {name: f"in/{name}" for name in run.inputs},
        "artifact_sha256": account.job.artifact_sha256,
        "seed": SEED,
    }
    if run.limits:
        request |= {"threads": max(1, int(run.limits.cpus)), "memory_bytes": run.limits.memory_bytes}
    if account.sidecar:
        request["sidecar"] = account.sidecar.model_dump(mode="json", exclude_none=True)
    request["target"] = account.job.target.model_dump(mode="json")
    shortened = False
    if account.descriptor and run.kind != "analyze":
        descriptor = account.descriptor.model_dump(mode="json", exclude_defaults=True)
        if len(json.dumps(descriptor)) > _MOST_BYTES:
            shortened = True
        else:
            request["descriptor"] = descriptor
    entry = CATALOG.get(run.kind)
    step_json = json.dumps(request, indent=2)
    return Recipe(
        run=run,
        summary=entry.summary if entry else "",
        commands=_commands(run, shortened, step_json),
        shortened=shortened,
    )


def _commands(run: StepRun, shortened: bool, step_json: str) -> str:
    """Return a shell script that lays out the workspace and runs the step; texts of a model stay inside quotes."""
    workspace = shlex.quote(f"step-{run.id}")
    lines = [f"mkdir -p {workspace}/in {workspace}/out"]
    lines += [
        f'cp -rL "$(stored {shlex.quote(sha256)})" {workspace}/in/{shlex.quote(name)}'
        for name, sha256 in run.inputs.items()
    ]
    # JSON has no raw line feed inside a text, so no text of a model can end the here-document.
    lines += [f"cat > {workspace}/step.json <<'END'", step_json, "END"]
    if shortened:
        path = f"{workspace}/step.json"
        lines.append(f"jq '.descriptor = input.descriptor' {path} report.json > step.tmp && mv step.tmp {path}")
    lines.append(f"(cd {workspace} && python -P -m executor.child .)")
    return "\n".join(lines)
