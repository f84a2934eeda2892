"""Logs: one line a record, with the job and step it belongs to."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import TextIO

from modelium.settings import Settings

_KEYS = ("job", "step")


class TextFormat(logging.Formatter):
    """For people: time, level, ids, message."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line; a traceback follows on its own lines."""
        at = datetime.fromtimestamp(record.created, UTC).strftime("%H:%M:%S.%f")[:-3]
        ids = "".join(f" {key}={getattr(record, key)[:12]}" for key in _KEYS if hasattr(record, key))
        line = f"{at} {record.levelname.lower():<7} {record.name}{ids}: {record.getMessage()}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormat(logging.Formatter):
    """For machines: one JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line of JSON."""
        entry = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **{key: getattr(record, key) for key in _KEYS if hasattr(record, key)},
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def configure(settings: Settings, *, quiet: bool = False, stream: TextIO | None = None) -> None:
    """Send this process's logs to standard error; only warnings when ``quiet``."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormat() if settings.log_format == "json" else TextFormat())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel("WARNING" if quiet and settings.log_level == "info" else settings.log_level.upper())
    # boto's debug lines quote whole requests, a session's token among them.
    for noisy in ("alembic", "watchdog", "amqp", "kombu", "boto3", "botocore", "s3transfer", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
