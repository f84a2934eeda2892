"""What a running step says, on its way to whoever follows: progress and log go to the database together."""

from __future__ import annotations

import logging
import time

from sqlalchemy.exc import DBAPIError

from modelium import db, step_runs
from schemas.step_run import StepRun

log = logging.getLogger(__name__)
WRITE_EVERY_S = 0.5


class LiveStep:
    """Takes what the sandbox's callbacks tell; ``tick`` has to be called a few times a second.

    A flood costs two transactions a second; the sandbox cuts a log at its limit before it comes here.
    """

    def __init__(self, database: db.Database, run: StepRun) -> None:
        self._database, self._run = database, run
        self._text: list[str] = []
        self._progress: tuple[float, str] | None = None
        self._next_write = 0.0

    def add_log(self, text: str) -> None:
        """Take a piece of the log."""
        self._text.append(text)
        self.tick()

    def progress(self, fraction: float, message: str) -> None:
        """Take the newest progress; what came before and was not written yet is forgotten."""
        self._progress = (fraction, message)
        self.tick()

    def tick(self) -> None:
        """Write what is there, unless something was written a moment ago."""
        now = time.monotonic()
        if now < self._next_write or not (self._text or self._progress):
            return
        text, progress = "".join(self._text), self._progress
        self._text, self._progress = [], None
        try:
            step_runs.note_live(self._database, self._run, text=text, progress=progress)
        except DBAPIError as error:
            # A step is not lost for what people who look meanwhile see of it; its record gets the whole log.
            log.warning("what a step says could not be shown: %s", error, extra={"job": self._run.job_id})
        self._next_write = time.monotonic() + WRITE_EVERY_S
