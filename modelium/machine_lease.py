"""The machine's lease: which steps run at once on this machine, whichever process or home of a user started them.

A step takes a place and the memory it will need, both or neither. Measuring gives its place back once it is ready, and
then takes every place. Who asks stands in one line, so a step that needs much memory waits for those before it and
never for those behind; a measurement that is ready goes before the line, which may wait for its memory. Nobody who has
a place waits for anything. All of it is bytes locked in one file (``byte_locks``): a killed holder or waiter frees its
own at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from modelium.byte_locks import ByteLocks
from modelium.home import runtime_root
from schemas.errors import Cancelled

FIRST_POLL_S, LAST_POLL_S = 0.001, 0.02
"""A look costs microseconds; what was waited for a long time may wait a moment longer."""
MOST_STEPS = 64
UNIT_BYTES = 1 << 20
_RESERVE_SHARE, _MOST_RESERVE_BYTES = 8, 2 << 30

# Ranges of one file's bytes.
_COUNTER = range(0, 1)
_PLACES = range(1, 1 + MOST_STEPS)
_READY = range(1 + MOST_STEPS, 2 + MOST_STEPS)
"""Held by whoever prepared under a place, gave it back and now waits for all: nobody else takes a place meanwhile."""
_GPU = range(2 + MOST_STEPS, 3 + MOST_STEPS)
"""One for all GPUs: every step that needs one is given the first, and its memory is not in the budget."""
_MEMORY = range(1 << 20, 1 << 30)
_LINE = range(1 << 30, 1 << 40)
_LEDGER = range(0, 1 << 40)

Ask = Callable[[], bool]


@dataclass(frozen=True)
class Lease:
    """What is held: seconds waited for it, and memory reserved."""

    waited_s: float
    memory_bytes: int
    _locks: ByteLocks = field(repr=False, compare=False)

    def give_back(self) -> None:
        """Give everything back before the block ends: what is left to do in it takes no part of the machine."""
        self._locks.give(_LEDGER)

    def take_machine(self, should_stop: Ask = lambda: False) -> float:
        """Give the place back, keep the memory, and return the seconds waited until every place is held.

        Raises Cancelled when ``should_stop`` says so; no place is held then.
        """
        began = time.monotonic()
        # Before anything is waited for: of two that hold a place each and want all, neither would ever get them.
        self._locks.give(_PLACES)
        try:
            _until(lambda: self._locks.take(_READY), should_stop)
            _until(lambda: self._locks.take(_PLACES), should_stop)
        finally:
            self._locks.give(_READY)
        return time.monotonic() - began


@contextmanager
def hold(
    *,
    exclusive: bool,
    at_once: int = MOST_STEPS,
    memory_bytes: int = 0,
    budget_bytes: int = 0,
    gpu: bool = False,
    should_stop: Ask = lambda: False,
) -> Iterator[Lease]:
    """Hold a place on the machine, or all of it, with memory. Raises Cancelled when ``should_stop`` says so.

    Args:
        at_once: Steps that may run at once on the machine, as this caller's settings have it.
        memory_bytes: What the step is expected to need. More than the budget is given the whole budget, and so runs
            with no other step beside it: an estimate is no reason to refuse what might fit.
        budget_bytes: What all steps together may reserve; 0: :func:`machine_budget_bytes`.
        gpu: The step uses a GPU, which no two do at once.
    """
    began = time.monotonic()
    budget = (budget_bytes or machine_budget_bytes()) // UNIT_BYTES
    wanted = min(-(-memory_bytes // UNIT_BYTES), budget)
    with ByteLocks(runtime_root() / "machine.ledger") as locks:
        ticket = _stand_in_line(locks, should_stop)
        _until(lambda: _take(locks, exclusive, at_once, wanted, budget, gpu), should_stop)
        locks.give(ticket)
        yield Lease(time.monotonic() - began, wanted * UNIT_BYTES, locks)


@contextmanager
def spare_place() -> Iterator[bool]:
    """Hold a place for work in the background; False where somebody has the machine alone, or is about to.

    It is one of those that steps come to last, so that no step waits for it. Who wants the machine alone does.
    """
    with ByteLocks(runtime_root() / "machine.ledger") as locks:
        last = [part[-1:] for part in locks.free(_PLACES)[-1:]]
        yield bool(locks.free(_READY)) and any(map(locks.take, last))


@contextmanager
def rest() -> Iterator[Ask]:
    """Hold a place while nobody else has or wants one; the block asks whether that is so still, and ends when not.

    It is always the same place, so that of two processes one rests; no step waits for it, as in :func:`spare_place`.
    """
    with ByteLocks(runtime_root() / "machine.ledger") as locks:
        taken = locks.take(_PLACES[-1:])
        yield lambda: taken and all(locks.free(part) == [part] for part in (_PLACES, _READY, _LINE))


def machine_budget_bytes() -> int:
    """Return the memory that steps may reserve together: this machine's, or this container's, less an eighth."""
    total = min([psutil.virtual_memory().total, *_container_limits()])
    return total - min(total // _RESERVE_SHARE, _MOST_RESERVE_BYTES)


def reserved_bytes() -> int:
    """Return what is reserved now, by anybody."""
    with ByteLocks(runtime_root() / "machine.ledger") as locks:
        return (len(_MEMORY) - sum(map(len, locks.free(_MEMORY)))) * UNIT_BYTES


def _stand_in_line(locks: ByteLocks, should_stop: Ask) -> range:
    """Return the ticket, once nobody has an earlier one."""
    _until(lambda: locks.take(_COUNTER), should_stop)
    last = locks.free(_LINE)[-1].start  # what is free behind the last ticket
    ticket = range(last, last + 1)
    locks.take(ticket)
    locks.give(_COUNTER)
    before = range(_LINE.start, ticket.start)
    _until(lambda: locks.free(before) == [before] or not before, should_stop)
    return ticket


def _take(locks: ByteLocks, exclusive: bool, at_once: int, wanted: int, budget: int, gpu: bool) -> bool:
    if not _take_places(locks, exclusive, at_once):
        return False
    if (gpu and not locks.take(_GPU)) or not _take_memory(locks, wanted, budget):
        for held in (_PLACES, _GPU):  # they may be what a measurement waits for, and it what is missing here
            locks.give(held)
        return False
    return True


def _take_places(locks: ByteLocks, exclusive: bool, at_once: int) -> bool:
    if not locks.free(_READY):
        return False
    if exclusive:
        return locks.take(_PLACES)
    # Only the first in line takes anything, so what is free stays free until it has taken it.
    return any(locks.take(free[:1]) for free in locks.free(_PLACES[:at_once])[:1])


def _take_memory(locks: ByteLocks, wanted: int, budget: int) -> bool:
    within = _MEMORY[:budget]
    free = locks.free(within)
    if sum(map(len, free)) < wanted:
        return False
    # Steps that have reserved may not have grown yet, and programs that are not ours never reserve: both need room.
    alone = free == [within]
    if not alone and wanted * UNIT_BYTES > psutil.virtual_memory().available:
        return False
    for part in free:
        piece = part[:wanted]
        locks.take(piece)
        wanted -= len(piece)
    return True


def _until(done: Ask, should_stop: Ask) -> None:
    pause_s = FIRST_POLL_S
    while not done():
        if should_stop():
            raise Cancelled("Stopped while waiting for the machine.")
        time.sleep(pause_s)
        pause_s = min(LAST_POLL_S, pause_s * 1.3)


def _container_limits() -> list[int]:
    found = []
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            found.append(int(Path(path).read_text()))
    return found


@contextmanager
def locked(path: Path, *, exclusive: bool = True, should_stop: Ask = lambda: False) -> Iterator[None]:
    """Hold an flock on ``path``; the lock ends with the block or the process. Raises Cancelled."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    mode = (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB

    def take() -> bool:
        try:
            fcntl.flock(descriptor, mode)
        except BlockingIOError:
            return False
        return True

    try:
        _until(take, should_stop)
        yield
    finally:
        os.close(descriptor)
