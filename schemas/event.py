"""Event: something arrived at a source, once."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from schemas.document import Document


class Event(Document):
    """One arrival. ``idempotency_key`` is the same for every report of the same arrival."""

    id: str
    source: str = Field(description="Name of the source: folder, cli, bucket")
    uri: str = Field(description="file:// uri of what arrived")
    size_bytes: int = Field(ge=0)
    etag: str = Field(description="What tells one content from the next without reading it: an ETag, or mtime and size")
    idempotency_key: str
    arrived_at: datetime
