"""Garbage: what ended jobs left in the store and nothing needs any more."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import select

from modelium import db, machine_lease, step_runs
from modelium.context import Context
from modelium.store_lock import collecting
from schemas.artifact import Artifact
from schemas.deployment import Deployment, DeploymentState
from schemas.job import ENDS, JobState


@dataclass(frozen=True)
class Collected:
    """What was, or would be, removed: artifacts, their bytes here, and with a bucket the bytes in it.

    ``evicted`` are copies here of dropped models that the bucket keeps; they are fetched again when they are needed.
    """

    artifacts: int
    size_bytes: int
    bucket_bytes: int = 0
    evicted: int = 0


def collect(context: Context, *, older_than_days: float, dry_run: bool = False) -> Collected:
    """Remove step outputs of jobs that ended long enough ago.

    Kept always: every dropped model and sidecar, every model of a deployment that is active or can be rolled back to,
    and whatever a job that has not ended may still need. Waits until no step runs, but for those that are
    ready to measure: what they read is recorded.

    With a bucket, what other machines may be about to record is kept by its age (:mod:`ingestion.shared_artifacts`),
    and what ended jobs had been dropped as is kept there only.
    """
    with machine_lease.hold(exclusive=True), collecting(context.home):
        return _collect(context, older_than_days, dry_run)


def _collect(context: Context, older_than_days: float, dry_run: bool) -> Collected:
    store, shared = context.store, context.store.shared
    needed, dropped = _needed(context, older_than_days)
    count = freed = evicted = 0
    deleted: dict[str, Artifact] = {}
    for artifact in list(store.all()):
        sha256 = artifact.sha256
        if sha256 in needed:
            continue
        if sha256 in dropped:
            size_bytes = 0 if dry_run else store.evict(sha256)
            evicted, freed = evicted + (size_bytes > 0), freed + size_bytes
        elif shared is None or shared.is_collectable(sha256):
            count += 1
            freed += artifact.size_bytes if dry_run else store.delete(sha256)
            deleted[sha256] = artifact
    if shared is None or dry_run:
        return Collected(count, freed)
    # Another machine may have recorded one meanwhile. Its bytes are in the bucket until they are swept.
    for sha256 in deleted.keys() & set().union(*_needed(context, older_than_days)):
        shared.restore(deleted[sha256])
    return Collected(count, freed, shared.sweep(), evicted)


def _needed(context: Context, older_than_days: float) -> tuple[set[str], set[str]]:
    """Return what is needed here, and what else was dropped and is kept for ever."""
    needed: set[str] = set()
    dropped: set[str] = set()
    horizon = db.now() - timedelta(days=older_than_days)
    with context.database.read() as connection:
        for row in connection.execute(select(db.jobs)).all():
            originals = {row.artifact_sha256, row.sidecar_sha256} - {None}
            dropped |= originals
            if JobState(row.state) not in ENDS or row.updated_at > horizon:
                needed |= originals
                for run in step_runs.of_job(context.database, row.id):
                    needed |= set(run.outputs.values()) | set(run.inputs.values())
        for document in connection.execute(select(db.deployments.c.document)).scalars():
            deployment = Deployment.model_validate(document)
            if deployment.state is not DeploymentState.RETIRED:
                needed.add(deployment.model_sha256)
    return needed, dropped
