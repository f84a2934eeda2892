"""The step cache: the same step over the same bytes is run once, whoever asks.

The key covers inputs, options, the request's documents (sidecar, target, descriptor), the source of our converters,
the toolchain's versions, the seed and the level of trust. Kills, timeouts and failures are never reused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from sqlalchemy import select

from modelium import db
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


def cache_key(request: StepRequest, inputs: Mapping[str, str], versions: Mapping[str, str], trust: str) -> str:
    """Return the key of one step.

    Args:
        inputs: Input name to sha256.
        versions: The toolchain's library versions.
        trust: What isolation the step runs under; outputs made without one never serve a job that has it.
    """
    parts = [request.model_dump(mode="json"), dict(inputs), dict(versions), source_digest(), trust]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


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
