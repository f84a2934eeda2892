"""The outbox relay: what a transaction wanted sent is sent, at least once."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import delete, select, update

from modelium import db

Publish = Callable[[str, str], None]
"""Send (job id, stage) to the broker; raises when it could not."""

KEEP_PUBLISHED = 2000


def relay(database: db.Database, publish: Publish, *, job_id: str | None = None) -> int:
    """Publish every unpublished row, oldest first; return how many.

    A row is marked after it was sent: a crash between the two sends it twice, and the claim makes that harmless.
    """
    query = select(db.outbox).where(db.outbox.c.published_at.is_(None)).order_by(db.outbox.c.id)
    if job_id is not None:
        query = query.where(db.outbox.c.job_id == job_id)
    with database.read() as connection:
        rows = connection.execute(query).all()
    for row in rows:
        publish(row.job_id, row.stage)
        with database.write() as connection:
            connection.execute(update(db.outbox).where(db.outbox.c.id == row.id).values(published_at=db.now()))
    return len(rows)


def discard(database: db.Database, job_id: str) -> None:
    """Mark a job's rows as sent without sending: its stages are run here and now."""
    with database.write() as connection:
        connection.execute(
            update(db.outbox)
            .where(db.outbox.c.job_id == job_id, db.outbox.c.published_at.is_(None))
            .values(published_at=db.now())
        )


def prune(database: db.Database) -> None:
    """Forget published rows but the newest of each job and the last few thousand."""
    newest = select(db.outbox.c.id).order_by(db.outbox.c.id.desc()).limit(KEEP_PUBLISHED)
    with database.write() as connection:
        connection.execute(
            delete(db.outbox).where(db.outbox.c.published_at.is_not(None), db.outbox.c.id.not_in(newest))
        )
