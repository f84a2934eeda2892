"""Garbage: what ended jobs left in the store and nothing needs any more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from sqlalchemy import select

from modelium import db, machine_lease, step_runs
from modelium.context import Context
from schemas.deployment import Deployment, DeploymentState
from schemas.job import ENDS, JobState


@dataclass(frozen=True)
class Collected:
    """What was, or would be, removed."""

    artifacts: int
    size_bytes: int


def collect(context: Context, *, older_than_days: float, dry_run: bool = False) -> Collected:
    """Remove step outputs of jobs that ended long enough ago.

    Kept always: every dropped model and sidecar, every model of a deployment that is active or can be rolled back to,
    and whatever a job that has not ended may still need. Waits until no step runs, but for those that are
    ready to measure: what they read is recorded.
    """
    with machine_lease.hold(exclusive=True), machine_lease.locked(_lock(context)):
        return _collect(context, older_than_days, dry_run)


@contextmanager
def kept(context: Context) -> Iterator[None]:
    """Keep the collector away while something is stored, or found stored, and not recorded as needed yet."""
    with machine_lease.locked(_lock(context), exclusive=False):
        yield


def _lock(context: Context) -> Path:
    return context.home.runtime / "store.lock"


def _collect(context: Context, older_than_days: float, dry_run: bool) -> Collected:
    needed: set[str] = set()
    horizon = db.now() - timedelta(days=older_than_days)
    with context.database.read() as connection:
        for row in connection.execute(select(db.jobs)).all():
            needed |= {row.artifact_sha256, row.sidecar_sha256} - {None}
            if JobState(row.state) not in ENDS or row.updated_at > horizon:
                for run in step_runs.of_job(context.database, row.id):
                    needed |= set(run.outputs.values()) | set(run.inputs.values())
        for document in connection.execute(select(db.deployments.c.document)).scalars():
            deployment = Deployment.model_validate(document)
            if deployment.state is not DeploymentState.RETIRED:
                needed.add(deployment.model_sha256)
    count = freed = 0
    for artifact in list(context.store.all()):
        if artifact.sha256 in needed:
            continue
        count += 1
        freed += artifact.size_bytes if dry_run else context.store.delete(artifact.sha256)
    return Collected(count, freed)
