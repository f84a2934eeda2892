"""What is held for warm starts: how much, when, and for which steps."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path


def anywhere() -> AbstractContextManager[bool]:
    """Return a place for work in the background where nobody gives places out."""
    return contextlib.nullcontext(True)


def always() -> AbstractContextManager[Callable[[], bool]]:
    """Return a rest where nobody knows whether the machine has one."""
    return contextlib.nullcontext(lambda: True)


@dataclass(frozen=True)
class WarmBounds:
    """How much warm parents, or waiting containers, may take in each process that runs steps.

    What is imported before it is needed is imported under a ``place`` of the machine, when that gives one; where it can
    be stopped in the middle, under a ``rest`` of the machine, as long as what that gives says so.
    """

    parents: int = 3
    memory_bytes: int = 1 << 30
    idle_s: float = 120
    place: Callable[[], AbstractContextManager[bool]] = anywhere
    rest: Callable[[], AbstractContextManager[Callable[[], bool]]] = always


@dataclass(frozen=True)
class WarmKey:
    """What steps must have in common to be forked from one parent: libraries read the environment when loaded."""

    toolchain: str
    interpreter: Path
    environment: tuple[tuple[str, str], ...]
