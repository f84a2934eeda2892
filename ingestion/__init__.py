"""Ingestion: notice a complete drop, store it by content, and say what arrived."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from ingestion import sidecar as sidecars
from ingestion.arrival import Arrival
from ingestion.drop_rules import left_out
from ingestion.naming import dns_label
from ingestion.store import Store
from schemas.artifact import Artifact, ArtifactKind
from schemas.errors import ErrorDocument, InvalidDocument, LimitExceeded, ModelFailed, NeedsInput
from schemas.event import Event
from schemas.sidecar import FOLDER_NAME, Sidecar


@dataclass(frozen=True)
class Received:
    """A stored arrival.

    ``error`` is what is wrong with the drop itself (a link, a strange name: ``artifact`` is then a folder holding only
    that sentence, so that the drop still has a job) or with its sidecar. ``sidecar_artifact`` is the sidecar with its
    companions; it is there for a faulty sidecar too, so that mending it makes a new job.
    """

    event: Event
    artifact: Artifact
    sidecar: Sidecar | None
    sidecar_artifact: Artifact | None
    name: str
    error: ErrorDocument | None = None


def event_of(arrival: Arrival, *, source: str = "folder") -> Event:
    """Return the event of ``arrival``; its idempotency key is the same whenever the same arrival is reported."""
    key = hashlib.sha256(f"{arrival.uri}\n{arrival.etag}".encode()).hexdigest()
    return Event(
        id=uuid4().hex,
        source=source,
        uri=arrival.uri,
        size_bytes=arrival.size_bytes,
        etag=arrival.etag,
        idempotency_key=key,
        arrived_at=datetime.now(UTC),
    )


def receive(arrival: Arrival, store: Store, *, source: str = "folder") -> Received:
    """Store what arrived and read its sidecar.

    Raises:
        StillChanging, StorageFull: Retryable; the source reports the drop again.
        NotFound: It is gone.
    """
    event = event_of(arrival, source=source)
    try:
        artifact = store.put(arrival.path, below=arrival.root, skip=left_out)
    except (ModelFailed, NeedsInput, LimitExceeded) as refused:
        document = refused.document()
        artifact = store.put_files({"refused.txt": str(refused).encode()})
        name = dns_label(arrival.relative)
        return Received(event, artifact, sidecar=None, sidecar_artifact=None, name=name, error=document)
    sidecar, sidecar_artifact, error = receive_sidecar(arrival.path, store)
    name = dns_label(arrival.relative, folder=artifact.kind is ArtifactKind.FOLDER)
    if sidecar is not None and sidecar.name is not None:
        name = sidecar.name
    return Received(event, artifact, sidecar, sidecar_artifact, name, error)


def receive_sidecar(model: Path, store: Store) -> tuple[Sidecar | None, Artifact | None, ErrorDocument | None]:
    """Read and store the sidecar of ``model`` with its companions; return it, the stored folder, and what is wrong."""
    text: bytes | None = None
    parsed: Sidecar | None = None
    try:
        found = sidecars.read_text(model)
        if found is None:
            return None, None, None
        path, text = found
        parsed = sidecars.parse(text, name=path.name)
        files = sidecars.companions(parsed, path)
        return parsed, store.put_files({FOLDER_NAME: text, **files}, below=path.parent), None
    except (InvalidDocument, NeedsInput, ModelFailed) as fault:
        kept = text if text is not None else str(fault).encode()
        return parsed, store.put_files({FOLDER_NAME: kept}), fault.document()


__all__ = ["Received", "event_of", "receive", "receive_sidecar"]
