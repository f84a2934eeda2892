"""The warm parents of one process: started when first asked for, few, bounded in memory, ended when idle."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet

from executor.warm_bounds import WarmBounds, WarmKey
from executor.warm_failed import WarmFailed
from executor.warm_parent import WarmParent
from executor.warm_seat import WarmSeat
from schemas.errors import ModeliumError

log = logging.getLogger(__name__)
_LOOK_EVERY_S = 2.0
_ASK_EVERY_S = 0.25
_REST_EVERY_S, _REST_LOOK_S = 0.1, 0.02
"""How often a rest is asked for, and how long parents import beside a step that another process starts in it."""
_CLOSE_S = 10


class WarmParents:
    """Keeps them. One thread starts and ends all: the kernel ends a sandbox with the *thread* that started it."""

    def __init__(self, bounds: WarmBounds, start: Callable[[WarmKey], WarmParent]) -> None:
        self._bounds, self._start = bounds, start
        self._begin()
        atexit.register(self.close)

    def _begin(self) -> None:
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._parents: dict[WarmKey, Future[WarmParent]] = {}
        self._users: dict[WarmKey, int] = {}
        self._awake = self._timed = 0
        self._starting: WarmParent | None = None
        self._closing = False
        self._refused: dict[WarmKey, str] = {}
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def prepare(self, key: WarmKey) -> None:
        """Start the parent for ``key`` unless there is one or it can't be, and wait for nothing."""
        if self._owner != os.getpid():
            self._after_fork()
        with self._lock, contextlib.suppress(WarmFailed):
            self._find(key)

    def is_ready(self, key: WarmKey) -> bool:
        """Whether a step would not have to wait for its parent."""
        with self._lock:
            future = self._parents.get(key)
            return self._owner == os.getpid() and future is not None and _is_ready(future) and future.result().alive

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """Let them go on with their imports while a step of this process runs: it has the leave to."""
        if self._owner != os.getpid():
            self._after_fork()
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def _count(self, more: int) -> None:
        with self._lock:
            before, self._awake = self._awake, self._awake + more
            if not (before and self._awake):
                for parent in self._ready():
                    (parent.resume if self._awake else parent.pause)()
            if not self._awake and self._thread is not None:
                self._work.put(self._tidy)

    @contextlib.contextmanager
    def seated(
        self, key: WarmKey, should_stop: Callable[[], bool] | None = None, *, timed: bool = False
    ) -> Iterator[tuple[WarmSeat, int]]:
        """Lend a child of the parent for ``key``, started if need be, and tell the memory that both have in common.

        Beside one that is ``timed`` no parent works. Raises WarmFailed and Cancelled.
        """
        with contextlib.ExitStack() as until_closed, contextlib.ExitStack() as until_begun:
            until_begun.enter_context(self.awake())
            if timed:
                until_closed.enter_context(self._quiet())
            parent = until_closed.enter_context(self._lent(key, should_stop))
            seat = parent.seat(should_stop)
            until_closed.callback(seat.close)
            inherited_bytes = parent.memory_bytes()
            if timed:
                until_begun.close()
            self._work.put(self._refill)
            yield seat, inherited_bytes

    @contextlib.contextmanager
    def _quiet(self) -> Iterator[None]:
        with self._lock:
            self._timed += 1
        try:
            yield
        finally:
            with self._lock:
                self._timed -= 1

    @contextlib.contextmanager
    def _lent(self, key: WarmKey, should_stop: Callable[[], bool] | None) -> Iterator[WarmParent]:
        with self._lock:
            future = self._find(key)
            self._users[key] = self._users.get(key, 0) + 1
        try:
            yield self._await(future, should_stop)
        except WarmFailed as error:
            if error.lasting:
                with self._lock:
                    self._refused[key] = str(error)
            raise
        finally:
            with self._lock:
                self._users[key] -= 1

    def close(self) -> None:
        """End all of them."""
        if self._owner != os.getpid() or self._thread is None:
            return
        with self._lock:
            self._closing = True
            if self._starting is not None:
                self._starting.give_up()
        done = threading.Event()
        self._work.put(lambda: self._end(list(self._parents)))
        self._work.put(done.set)
        done.wait(timeout=_CLOSE_S)

    def _find(self, key: WarmKey) -> Future[WarmParent]:
        if key in self._refused:
            raise WarmFailed(self._refused[key], lasting=True)
        future = self._parents.get(key)
        if future is not None and not (future.done() and (future.exception() or not future.result().alive)):
            return future
        if future is None and len(self._parents) >= self._bounds.parents and not self._idle():
            raise WarmFailed("all warm parents are at work")
        fresh: Future[WarmParent] = Future()
        self._parents[key] = fresh
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._keep, name="warm-parents", daemon=True)
            self._thread.start()
        self._work.put(lambda: self._replace(key, future, fresh))
        return fresh

    def _await(self, future: Future[WarmParent], should_stop: Callable[[], bool] | None) -> WarmParent:
        while True:
            try:
                return future.result(timeout=_ASK_EVERY_S)
            except NotYet:
                if should_stop is not None and should_stop():
                    raise WarmFailed("the step was cancelled before its parent was ready") from None

    def _idle(self) -> list[WarmKey]:
        """Return the keys of those that nobody uses, least recently used first."""
        found = [
            (future.result().last_used, key)
            for key, future in self._parents.items()
            if not self._users.get(key) and future.done() and not future.exception()
        ]
        return [key for _, key in sorted(found, key=lambda item: item[0])]

    def _ready(self) -> list[WarmParent]:
        return [future.result() for future in self._parents.values() if _is_ready(future)]

    def _keep(self) -> None:
        while True:
            self._refill()
            with self._lock:
                is_done = not any(parent.imports or parent.lacks_seat for parent in self._ready())
            work = self._next(_LOOK_EVERY_S) if is_done else self._rest()
            (work or self._tidy)()

    def _next(self, patience_s: float) -> Callable[[], None] | None:
        with contextlib.suppress(queue.Empty):
            return self._work.get(timeout=patience_s)
        return None

    def _rest(self) -> Callable[[], None] | None:
        """Let parents end their imports while nobody has or wants the machine; return what there is to do, if any."""
        with contextlib.suppress(OSError, ModeliumError), self._bounds.rest() as is_free:
            try:
                while is_free() and self._go_on():
                    if work := self._next(_REST_LOOK_S):
                        return work
                    self._tidy()
            finally:  # before the place is given back
                with self._lock:
                    for parent in self._ready() if not self._awake else ():
                        parent.pause()
        return self._next(_REST_EVERY_S)

    def _go_on(self) -> bool:
        """Resume what still imports or has no child waiting; False when nothing does, or a step here lets it."""
        with self._lock:
            is_theirs = not self._awake and not self._timed
            unready = [p for p in self._ready() if p.imports or p.lacks_seat] if is_theirs else []
            for parent in unready:
                parent.resume()
        for parent in unready:
            if parent.lacks_seat:
                parent.keep_seat()
        return bool(unready)

    def _refill(self) -> None:
        """Have children wait again where steps took them: while those run, the machine's leave is theirs."""
        with self._lock:
            is_theirs = self._awake and not self._timed
            lacking = [parent for parent in self._ready() if parent.lacks_seat] if is_theirs else []
        if lacking:
            with self.awake():
                for parent in lacking:
                    parent.keep_seat()

    def _replace(self, key: WarmKey, old: Future[WarmParent] | None, fresh: Future[WarmParent]) -> None:
        if old is not None and old.done() and not old.exception():
            old.result().end()
        with self._lock:
            over = len(self._parents) - self._bounds.parents
            leaving = self._idle()[: max(0, over)]
        self._end(leaving)
        parent = None
        try:
            began = time.monotonic()
            parent = self._start(key)
            with self._lock:
                self._starting = parent
                if self._closing:
                    parent.give_up()
            parent.wait()
            log.debug("warm parent of %s ready after %.1f s", key.toolchain, time.monotonic() - began)
            with self._lock:
                fresh.set_result(parent)
                if not self._awake:
                    parent.pause()
        except (WarmFailed, OSError, ModeliumError) as error:
            # Of what the system refuses, most is short for a while only: processes, memory, descriptors.
            lasting = not isinstance(error, OSError)
            fresh.set_exception(error if isinstance(error, WarmFailed) else WarmFailed(str(error), lasting=lasting))
        finally:
            with self._lock:
                self._starting = None
            if not _is_ready(fresh):
                if not fresh.done():
                    fresh.set_exception(WarmFailed("starting it failed"))  # a fault of ours; nobody waits for ever
                with self._lock:
                    self._parents.pop(key, None)
                if parent is not None:
                    parent.end()

    def _tidy(self) -> None:
        """End what has been idle for long, what died, and what takes too much memory."""
        now = time.monotonic()
        with self._lock:
            idle = self._idle()
            parents = {key: future.result() for key, future in self._parents.items() if _is_ready(future)}
            memory = {key: parent.memory_bytes() for key, parent in parents.items()}
            leaving = []
            for key in idle:
                if memory[key] > self._bounds.memory_bytes:
                    self._refused[key] = f"its parent takes {memory[key] >> 20} MiB, more than the settings allow"
                old = now - parents[key].last_used > self._bounds.idle_s
                useless = key in self._refused or not parents[key].alive
                if old or useless or sum(memory.values()) > self._bounds.memory_bytes:
                    leaving.append(key)
                    del memory[key]
        self._end(leaving)

    def _end(self, keys: list[WarmKey]) -> None:
        with self._lock:
            futures = [self._parents.pop(key) for key in keys if key in self._parents and not self._users.get(key)]
        for future in futures:
            if _is_ready(future):
                future.result().end()

    def _after_fork(self) -> None:
        """Forget what belongs to the process that this one was forked from."""
        for future in self._parents.values():
            if _is_ready(future):
                future.result().abandon()
        self._begin()


def _is_ready(future: Future[WarmParent]) -> bool:
    return future.done() and not future.exception()
