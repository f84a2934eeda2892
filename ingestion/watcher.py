"""Watcher: the kernel's events of one folder tree as notices in a queue, and nothing else.

A handler that works is what makes the kernel's queue overflow, so this one only queues. Watchdog tells of an overflow
by a warning in its log and in no other way; that warning becomes a notice too.
"""

from __future__ import annotations

import logging
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from watchdog.events import FileSystemEvent, FileSystemEventHandler
    from watchdog.observers.api import BaseObserver

_WATCHDOG_LOG = "watchdog.observers"


@dataclass(frozen=True)
class Notice:
    """Something to look into: ``kind`` is created, moved, closed, deleted, overflow, scan or stop."""

    kind: str
    path: str = ""


class Watcher:
    """Watches ``root`` and everything below it while it is started."""

    def __init__(self, root: Path, notices: SimpleQueue[Notice]) -> None:
        self._root = root
        self._notices = notices
        self._observer: BaseObserver | None = None
        self._overflow = _OverflowListener(notices)

    def start(self) -> None:
        """Watch from now on. Raises OSError where the kernel's limits of watches are used up."""
        from watchdog.observers import Observer

        # A folder that fills while watchdog walks it is added twice, with a warning of a screenful and no consequence.
        warnings.filterwarnings("ignore", message=r"Callback with id .* already exists", category=RuntimeWarning)
        observer = Observer()
        observer.schedule(_handler(self._notices), str(self._root), recursive=True, event_filter=_events())
        observer.start()
        self._observer = observer
        logging.getLogger(_WATCHDOG_LOG).addHandler(self._overflow)

    def stop(self) -> None:
        """Stop watching; nothing is queued afterwards."""
        logging.getLogger(_WATCHDOG_LOG).removeHandler(self._overflow)
        if self._observer is not None:
            self._observer.stop()
            self._observer.join()
            self._observer = None


def _events() -> list[type[FileSystemEvent]]:
    """Return the events that tell where to look; without the rest a big copy is two events, not one a write."""
    from watchdog import events

    return [
        events.FileCreatedEvent, events.DirCreatedEvent, events.FileMovedEvent, events.DirMovedEvent,
        events.FileClosedEvent, events.FileDeletedEvent, events.DirDeletedEvent,
    ]  # fmt: skip


def _handler(notices: SimpleQueue[Notice]) -> FileSystemEventHandler:
    from watchdog.events import FileSystemEventHandler

    class Handler(FileSystemEventHandler):
        def on_any_event(self, event: FileSystemEvent) -> None:
            source = os.fsdecode(event.src_path)
            if event.event_type == "moved":
                notices.put(Notice("deleted", source))
                source = os.fsdecode(event.dest_path)
            notices.put(Notice(event.event_type, source))

    return Handler()


class _OverflowListener(logging.Handler):
    def __init__(self, notices: SimpleQueue[Notice]) -> None:
        super().__init__(logging.WARNING)
        self._notices = notices

    def emit(self, record: logging.LogRecord) -> None:
        if "overflow" in record.getMessage().lower():
            self._notices.put(Notice("overflow"))
