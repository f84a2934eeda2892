"""The tables, and how a transaction is had. SQLite (WAL) or PostgreSQL by URL, the same SQL."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Engine,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    create_engine,
    event,
)
from sqlalchemy.exc import DBAPIError, DisconnectionError

from schemas.artifact import Artifact

HEAD = "0002"
"""The newest revision in ``migrations/versions``; a test keeps it so."""
BUSY_TIMEOUT_S = 30
"""How long a transaction of SQLite waits for another process's."""

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class UtcTime(TypeDecorator[datetime]):
    """A moment, kept as ISO 8601 text in UTC: the same in both databases, and it sorts as it reads."""

    impl = String(32)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> str | None:
        """Write."""
        return None if value is None else value.astimezone(UTC).isoformat(timespec="microseconds")

    def process_result_value(self, value: str | None, dialect: Any) -> datetime | None:
        """Read."""
        return None if value is None else datetime.fromisoformat(value)


BigId = BigInteger().with_variant(Integer, "sqlite")  # only INTEGER autoincrements in SQLite

events = Table(
    "events",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("source", String(32), nullable=False),
    Column("uri", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("etag", Text, nullable=False),
    Column("idempotency_key", String(64), nullable=False, unique=True),
    Column("arrived_at", UtcTime, nullable=False),
)

artifacts = Table(
    "artifacts",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("document", JSON, nullable=False),
    Column("created_at", UtcTime, nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("key", String(64), nullable=False, unique=True),
    Column("uri", Text, nullable=False),
    Column("label", String(63), nullable=False),  # the name it asks for
    Column("name", String(63)),  # the name it has been given
    Column("event_id", ForeignKey("events.id"), nullable=False),
    Column("artifact_sha256", ForeignKey("artifacts.sha256"), nullable=False),
    Column("sidecar_sha256", ForeignKey("artifacts.sha256")),
    Column("sidecar", JSON),
    Column("target", JSON, nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("attempt", Integer, nullable=False),
    Column("reason", Text),
    Column("error", JSON),
    Column("cancel_requested", Boolean, nullable=False, default=False),
    Column("lease_owner", String(64)),
    Column("lease_until", Float),  # seconds since the epoch
    Column("deliveries", Integer, nullable=False, default=0),  # claims of the present stage
    Column("created_at", UtcTime, nullable=False),
    Column("updated_at", UtcTime, nullable=False),
)

documents = Table(
    "job_documents",  # descriptor, plan, plan_findings, reference, measure, verdict, candidates: the latest of each
    metadata,
    Column("job_id", ForeignKey("jobs.id"), primary_key=True),
    Column("kind", String(32), primary_key=True),
    Column("attempt", Integer, nullable=False),
    Column("document", JSON, nullable=False),
)

transitions = Table(
    "transitions",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("job_id", ForeignKey("jobs.id"), nullable=False, index=True),
    Column("at", UtcTime, nullable=False),
    Column("before", String(16)),
    Column("after", String(16), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("reason", Text),
)

step_runs = Table(
    "step_runs",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("job_id", ForeignKey("jobs.id"), nullable=False, index=True),
    Column("attempt", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("cache_key", String(64), nullable=False),
    Column("document", JSON, nullable=False),
    Column("started_at", UtcTime, nullable=False),
    Index("ix_step_runs_cache", "cache_key", "state"),
)

live_logs = Table(
    "live_logs",  # what running steps have printed, piece by piece; a step that has ended has all of it
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("step_run_id", ForeignKey("step_runs.id"), nullable=False, index=True),
    Column("text", Text, nullable=False),
)

progress = Table(
    "progress",
    metadata,
    Column("job_id", ForeignKey("jobs.id"), primary_key=True),
    Column("step", String(64), nullable=False),
    Column("fraction", Float, nullable=False),
    Column("message", Text, nullable=False),
    Column("at", UtcTime, nullable=False),
)

names = Table(
    "names",  # a deployment's name belongs to one uri
    metadata,
    Column("name", String(63), primary_key=True),
    Column("uri", Text, nullable=False),
    Column("claimed_at", UtcTime, nullable=False),
)

deployments = Table(
    "deployments",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("job_id", ForeignKey("jobs.id"), nullable=False, index=True),
    Column("attempt", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("document", JSON, nullable=False),
    Column("created_at", UtcTime, nullable=False),
)

outbox = Table(
    "outbox",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("job_id", ForeignKey("jobs.id"), nullable=False, index=True),
    Column("stage", String(16), nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("published_at", UtcTime, index=True),
)


def now() -> datetime:
    """Return this moment in UTC."""
    return datetime.now(UTC)


def insert_ignore(connection: Connection, table: Any, values: dict[str, Any]) -> bool:
    """Insert a row unless one with the same unique key exists; return whether it was inserted."""
    # Imported where they are needed: PostgreSQL's takes longer than most commands.
    if connection.dialect.name == "postgresql":
        from sqlalchemy.dialects import postgresql

        return bool(connection.execute(postgresql.insert(table).values(**values).on_conflict_do_nothing()).rowcount)
    from sqlalchemy.dialects import sqlite

    return bool(connection.execute(sqlite.insert(table).values(**values).on_conflict_do_nothing()).rowcount)


def keep_artifact(connection: Connection, artifact: Artifact) -> None:
    """Write what is stored, unless it is known."""
    row = {"sha256": artifact.sha256, "kind": artifact.kind.value, "size_bytes": artifact.size_bytes}
    row_document = {"document": artifact.model_dump(mode="json"), "created_at": now()}
    insert_ignore(connection, artifacts, {**row, **row_document})


class Database:
    """One database; safe to share between threads, to be opened anew after a fork."""

    def __init__(self, url: str) -> None:
        self.url = url
        if url.startswith("sqlite"):
            # Connections are kept: whenever the last one to a file closes, SQLite empties its log into it, which costs
            # milliseconds after every transaction of a process that is alone.
            self.engine: Engine = create_engine(
                url, pool_size=4, max_overflow=60, connect_args={"timeout": BUSY_TIMEOUT_S}
            )
            _prepare_sqlite(self.engine)
        else:
            self.engine = create_engine(url, pool_pre_ping=True, pool_size=2, max_overflow=6)
        self._writer = self.engine.execution_options(writes=True)

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that may write: committed at the end, rolled back on an error."""
        with self._writer.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A consistent view that writes nothing."""
        with self.engine.connect() as connection:
            yield connection

    def migrate(self) -> None:
        """Bring the tables to the newest revision; safe to call from several processes at once."""
        if self._revision() == HEAD:
            return
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        with self.write() as connection:
            if connection.dialect.name == "postgresql":
                connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7263845)")
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def _revision(self) -> str | None:
        """Read the revision without Alembic, whose import alone costs more than most commands take."""
        with self.read() as connection:
            try:
                return str(connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar())
            except DBAPIError:
                return None


def _use_wal(connection: Any) -> None:
    """Turn the write-ahead log on; SQLite's busy timeout does not cover this when a new file has several openers."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.01)


def _prepare_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def connect(connection: Any, record: Any) -> None:
        # The driver's own BEGIN is deferred: two writers that both read first would deadlock with SQLITE_BUSY.
        connection.isolation_level = None
        _use_wal(connection)
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA foreign_keys=ON")
        record.info["process"] = os.getpid()

    @event.listens_for(engine, "checkout")
    def checkout(connection: Any, record: Any, proxy: Any) -> None:
        if record.info["process"] != os.getpid():  # carried across a fork: the parent's, never to be used here
            record.dbapi_connection = proxy.dbapi_connection = None
            raise DisconnectionError("This connection belongs to another process.")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
