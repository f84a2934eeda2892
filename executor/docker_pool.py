"""The waiting containers of one process: one for each kind of step, made in the background, few, and bounded."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from executor.docker_waiting import WaitingContainer
from executor.processes import available_bytes
from executor.sandbox import Command
from executor.warm_bounds import WarmBounds
from executor.warm_failed import WarmFailed
from schemas.errors import ModeliumError

log = logging.getLogger(__name__)
_LOOK_EVERY_S = 2.0
_LISTEN_EVERY_S = 0.1
_PATIENCE_S = 1.0
"""Most steps are over by then: making the next container beside one costs it more than it takes in all."""
_START_S = 90
_CLOSE_S = 10
_RESERVE_BYTES = 1 << 30
"""What has to be free beside a container that is made for later."""


@dataclass(frozen=True)
class Kind:
    """What steps must have in common to run in one waiting container.

    ``document`` is all that the engine is told of it, limits and variables and mounts; a workspace can only be moved
    within the file system of ``workspaces``.
    """

    document: str
    workspaces: Path
    like: Command = field(compare=False)


class ContainerPool:
    """Keeps them. One thread makes and removes all, so that no step waits for either."""

    def __init__(
        self,
        bounds: WarmBounds,
        make: Callable[[Kind], WaitingContainer],
        check: Callable[[], None],
    ) -> None:
        """``check`` raises WarmFailed where such containers hold less than others; asked before the first is kept."""
        self._bounds, self._make, self._check = bounds, make, check
        self._begin()
        atexit.register(self.close)
        os.register_at_fork(after_in_child=self._after_fork)

    def _begin(self) -> None:
        self._changed = threading.Condition()
        """Guards all below; a container belongs to whoever took it out of ``_waiting``."""
        self._waiting: dict[Kind, WaitingContainer] = {}
        self._asked: dict[Kind, float] = {}
        self._due: dict[Kind, float] = {}
        self._failed: dict[Kind, WarmFailed] = {}
        self._thread: threading.Thread | None = None
        self._closing = False

    def take(self, kind: Kind, *, idle: bool = False) -> WaitingContainer | None:
        """Return the container that waits for a step of ``kind``, if there is one; another is made for the next step.

        Unless it has to be ``idle`` it may still be importing, and then goes on where it is: never later than one that
        starts now. Raises WarmFailed where there will be none.
        """
        with self._changed:
            self._ask(kind, _PATIENCE_S)
            if idle and kind in self._waiting and not self._waiting[kind].idle:
                return None
            return self._waiting.pop(kind, None)

    def ended(self, kind: Kind) -> None:
        """Make the next container now: the step of ``kind`` has ended."""
        with self._changed:
            if kind in self._due:
                self._due[kind] = 0.0
            self._changed.notify_all()

    def prepare(self, kind: Kind) -> None:
        """Make a container of ``kind`` unless one waits already."""
        with self._changed, contextlib.suppress(WarmFailed):
            self._ask(kind, 0.0)

    def await_idle(self, kind: Kind) -> None:
        """Wait until a container of ``kind`` has imported all that it will. Raises WarmFailed."""
        deadline = time.monotonic() + _START_S
        with self._changed:
            self._ask(kind, 0.0)
            while not ((found := self._waiting.get(kind)) and found.idle):
                if kind in self._failed:
                    raise self._failed[kind]
                if (left_s := deadline - time.monotonic()) <= 0:
                    raise WarmFailed(f"none was ready after {_START_S} s")
                self._changed.wait(min(left_s, _LISTEN_EVERY_S))
                if kind not in self._asked:  # removed to make room, or as idle: it is wanted still
                    self._ask(kind, 0.0)

    def idle(self) -> dict[str, int]:
        """Return the toolchains whose imports are done in a container that waits, with the memory that it holds."""
        with self._changed:
            return {
                str(kind.like.warm): container.memory_bytes() or 0
                for kind, container in self._waiting.items()
                if container.idle
            }

    def close(self) -> None:
        """Remove all of them."""
        with self._changed:
            self._closing, thread = True, self._thread
            self._changed.notify_all()
        if thread is not None:
            thread.join(_CLOSE_S)
        with self._changed:
            self._asked.clear()
            self._due.clear()
            self._closing, self._thread = False, None

    def _ask(self, kind: Kind, patience_s: float) -> None:
        failure = self._failed.get(kind)
        if failure is not None and failure.lasting:
            raise failure
        self._failed.pop(kind, None)
        now = time.monotonic()
        self._asked[kind], self._due[kind] = now, now + patience_s
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._keep, name="waiting-containers", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _keep(self) -> None:
        while True:
            with self._changed:
                if self._closing:
                    break
                kind = self._next()
            if kind is None or not self._add(kind):
                with self._changed:
                    if not self._closing and self._next() is kind:
                        self._changed.wait(self._next_look_s())
            self._tidy()
        self._end(list(self._waiting))

    def _next(self) -> Kind | None:
        """Return the kind without a container that was asked for last, of those whose time has come."""
        now = time.monotonic()
        lacking = [kind for kind in self._lacking() if self._due[kind] <= now]
        return max(lacking, key=lambda kind: self._asked[kind], default=None)

    def _lacking(self) -> list[Kind]:
        return [kind for kind in self._asked if kind not in self._waiting and kind not in self._failed]

    def _next_look_s(self) -> float:
        now = time.monotonic()
        return min((due - now for kind in self._lacking() if (due := self._due[kind]) > now), default=_LOOK_EVERY_S)

    def _add(self, kind: Kind) -> bool:
        """Make a container of ``kind`` and wait until it is idle, or taken; False when it is not the time for it."""
        try:
            with self._bounds.place() as free:
                left = available_bytes()
                if not free or (left is not None and left < _RESERVE_BYTES):
                    return False
                self._check()
                self._make_room()
                made = self._make(kind)
                with self._changed:
                    self._waiting[kind] = made
                self._listen(kind, made)
        except (WarmFailed, OSError, ModeliumError) as error:
            failure = error if isinstance(error, WarmFailed) else WarmFailed(str(error))
            log.debug("no container waits for steps of %s: %s", kind.like.warm, failure)
            with self._changed:
                self._failed[kind] = failure
                self._changed.notify_all()
            self._end([kind])
        return True

    def _listen(self, kind: Kind, made: WaitingContainer) -> None:
        began = time.monotonic()
        with self._changed:
            while self._waiting.get(kind) is made and not made.has_ended and not self._closing:
                made.listen(0)
                took_s = time.monotonic() - began
                if made.idle:
                    self._weigh(made)
                    log.debug("a container waits for steps of %s after %.1f s", kind.like.warm, took_s)
                    self._changed.notify_all()
                    return
                if took_s > _START_S:
                    raise WarmFailed(f"it was not ready after {_START_S} s", lasting=True)
                self._changed.wait(_LISTEN_EVERY_S)
            is_ours = self._waiting.get(kind) is made
        if is_ours and made.has_ended:
            raise made.failure()

    def _weigh(self, made: WaitingContainer) -> None:
        size = made.memory_bytes()
        if size is None:
            raise WarmFailed("what it holds can't be seen from here", lasting=True)
        if size > self._bounds.memory_bytes:
            raise WarmFailed(f"it takes {size >> 20} MiB, more than the settings allow", lasting=True)

    def _make_room(self) -> None:
        with self._changed:
            over = len(self._waiting) + 1 - self._bounds.parents
            leaving = self._oldest()[: max(0, over)]
            for kind in leaving:
                self._forget(kind)
        self._end(leaving)

    def _oldest(self) -> list[Kind]:
        return sorted(self._waiting, key=lambda kind: self._asked.get(kind, 0.0))

    def _tidy(self) -> None:
        """Remove what nobody asked for in a long time, what died, and what takes too much memory."""
        now = time.monotonic()
        with self._changed:
            for kind in [kind for kind, at in self._asked.items() if now - at > self._bounds.idle_s]:
                self._forget(kind)
            memory = {kind: container.memory_bytes() or 0 for kind, container in self._waiting.items()}
            leaving = [kind for kind in self._oldest() if kind not in self._asked or self._is_dead(kind)]
            for kind in leaving:
                memory.pop(kind)
            for kind in self._oldest():
                if kind in memory and sum(memory.values()) > self._bounds.memory_bytes:
                    leaving.append(kind)
                    memory.pop(kind)
                    self._forget(kind)
        self._end(leaving)

    def _forget(self, kind: Kind) -> None:
        """Make no more of ``kind`` until a step asks."""
        self._asked.pop(kind, None)
        self._due.pop(kind, None)

    def _is_dead(self, kind: Kind) -> bool:
        self._waiting[kind].listen(0)
        return self._waiting[kind].has_ended

    def _end(self, kinds: list[Kind]) -> None:
        with self._changed:
            leaving = [self._waiting.pop(kind) for kind in kinds if kind in self._waiting]
        for container in leaving:
            container.close()

    def _after_fork(self) -> None:
        """Forget what belongs to the process that this one was forked from."""
        for container in self._waiting.values():
            container.abandon()
        self._begin()
