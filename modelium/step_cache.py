"""The step cache: the same step over the same bytes is run once, whoever asks.

The key covers inputs, options, the request's documents (sidecar, target, descriptor), the source of our converters,
the toolchain's versions, the seed and the level of trust; of a measurement and of what needs a GPU the
machine too. Kills, timeouts and failures are never reused.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from sqlalchemy import select

from modelium import db
from schemas.catalog import needs_gpu
from schemas.descriptor import Format
from schemas.document import Document
from schemas.step_io import StepRequest
from schemas.step_run import StepRun, StepRunState

SOURCE_PACKAGES = ("analyzer", "converters", "schemas")


@cache
def source_digest() -> str:
    """Return the sha256 over the source of everything that runs in the child."""
    digest = hashlib.sha256()
    for package in SOURCE_PACKAGES:
        spec = find_spec(package)
        assert spec is not None and spec.origin is not None
        root = Path(spec.origin).parent
        for path in sorted(root.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(f"{path.relative_to(root.parent)}\0".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()


def cache_key(
    request: StepRequest, inputs: Mapping[str, str], versions: Mapping[str, str], trust: str, machine: str = ""
) -> str:
    """Return the key of one step.

    Args:
        inputs: Input name to sha256.
        versions: The toolchain's library versions.
        trust: The level of isolation the step runs under (:attr:`Isolation.level`); what was made under less never
            serves a worker that has more, on whatever machine.
        machine: Where it ran, for results that hold there only; see :func:`machine_identity`. Answers in int8 hold
            where sums of products saturate alike.
    """
    # What a step may use ends it or does not: of one that succeeded, nothing depends on the limit.
    asked = request.model_dump(mode="json", exclude={"memory_bytes"})
    parts = [asked, dict(inputs), dict(versions), source_digest(), trust, machine]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@cache
def machine_identity() -> str:
    """Return what tells this machine, as it was started and as much of it as this process may use, from any other."""
    facts = [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), sorted(os.sched_getaffinity(0))]
    for path in ("/sys/fs/cgroup/cpu.max", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us"):
        with contextlib.suppress(OSError):
            facts.append(Path(path).read_text().strip())
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def gpu_of(kind: str, options: Document, original: Format | None) -> str:
    """Return what tells this machine where a step needs its GPU, empty otherwise: engines are for the GPU at hand."""
    return machine_identity() if needs_gpu(kind, options, original) else ""


def find(database: db.Database, key: str) -> StepRun | None:
    """Return the newest run that succeeded with this key, or None."""
    query = (
        select(db.step_runs.c.document)
        .where(db.step_runs.c.cache_key == key, db.step_runs.c.state == StepRunState.SUCCEEDED.value)
        .order_by(db.step_runs.c.started_at.desc())
        .limit(1)
    )
    with database.read() as connection:
        document = connection.execute(query).scalar()
    return StepRun.model_validate(document) if document else None
