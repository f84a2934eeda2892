"""Handover: a step prepares under a place of the machine's lease, and has the machine alone once it is ready."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from modelium.machine_lease import Lease
from schemas.errors import Cancelled
from schemas.step_io import LEASE_FILE, READY

if TYPE_CHECKING:
    from executor.workspace import Workspace

log = logging.getLogger(__name__)


class Handover:
    """Waits for the machine in a thread, as the one that runs the sandbox watches its limits meanwhile.

    ``folder`` is the step's input ``lease``. What the step says decides only when the machine is asked for: one that
    never says that it is ready runs into its time limit, and one that says so too early is timed all the same.
    """

    def __init__(self, lease: Lease, workspaces: Path, should_stop: Callable[[], bool]) -> None:
        """Take ``lease``, which holds a place. The folder is made below ``workspaces``, where every sandbox sees it."""
        self._lease, self._workspaces, self._should_stop = lease, workspaces, should_stop
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="handover")
        self._waiting: Future[None] | None = None
        self._ended = False
        self._alone_since: float | None = None

    def hear(self, message: str) -> None:
        """Take what the step says of its progress."""
        if message == READY and self._waiting is None:
            self._waiting = self._pool.submit(self._hand_over)

    def has_failed(self) -> bool:
        """Whether the machine will never be handed over, so that the step need not wait for it."""
        return self._waiting is not None and self._waiting.done() and self._waiting.exception() is not None

    def _hand_over(self) -> None:
        waited_s = self._lease.take_machine(lambda: self._ended or self._should_stop())
        self._alone_since = time.monotonic()
        log.info("the machine was handed over after %.2f s", waited_s)
        (self.folder / LEASE_FILE).write_bytes(b"1")

    def __enter__(self) -> Self:
        from executor.workspace import Workspace

        self._workspace: Workspace = Workspace(self._workspaces)
        self.folder = self._workspace.path / "lease"
        self.folder.mkdir()
        self.folder.chmod(0o755)
        # There from the beginning: what a network file system remembers as absent may stay so for a minute.
        (self.folder / LEASE_FILE).touch()
        (self.folder / LEASE_FILE).chmod(0o644)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended = True
        self._pool.shutdown()
        self._workspace.remove()
        if self._alone_since is not None:
            log.info("the machine was held alone for %.2f s", time.monotonic() - self._alone_since)
        failure = self._waiting.exception() if self._waiting is not None else None
        if failure is not None and not isinstance(failure, Cancelled):
            raise failure
