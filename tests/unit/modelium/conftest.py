from __future__ import annotations

import hashlib
from collections.abc import Callable
from uuid import uuid4

import pytest

from modelium import arrivals, db
from modelium.db import Database
from schemas.artifact import Artifact, ArtifactKind
from schemas.errors import ErrorDocument
from schemas.event import Event
from schemas.target import TargetProfile

Arrive = Callable[..., arrivals.Arrived]


def arrive_in(database: Database, uri: str = "file:///in/a.pt", content: str = "a", **more: object) -> arrivals.Arrived:
    sha256 = hashlib.sha256(content.encode()).hexdigest()
    event = Event(
        id=uuid4().hex, source="folder", uri=uri, size_bytes=1, etag=content,
        idempotency_key=hashlib.sha256(f"{uri}{content}".encode()).hexdigest(), arrived_at=db.now(),
    )  # fmt: skip
    artifact = Artifact(sha256=sha256, kind=ArtifactKind.FILE, size_bytes=1)
    error = more.pop("error", None)
    assert error is None or isinstance(error, ErrorDocument)
    return arrivals.record(database, event, artifact, label="a", target=TargetProfile(), error=error)


@pytest.fixture
def arrive(database: Database) -> Arrive:
    """Record an arrival in the database of the test."""
    return lambda *args, **kwargs: arrive_in(database, *args, **kwargs)
