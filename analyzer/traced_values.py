"""What a traced pickle's values are: names, calls that were never made, and constants."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Global:
    """A name a pickle asks for. ``module`` and ``name`` are as written, before Python 2's names are mapped."""

    module: str
    name: str
    offset: int
    protocol: int


@dataclass
class Instance:
    """What calling ``made_by`` would give, never made. ``state`` is what BUILD would set."""

    made_by: Global | None
    args: Any = None
    state: Any = None
    builds: int = 0


@dataclass
class Entries:
    """A dict of the pickle, its string keys alone; ``whole`` ends when something could not be followed."""

    items: dict[str, Any] = field(default_factory=dict)
    whole: bool = True


@dataclass(frozen=True)
class Blob:
    """A bytes constant: ``head`` is all of it up to KEEP_BYTES."""

    head: bytes
    size_bytes: int
    offset: int


class Other:
    """Any value whose content nothing asks for: a number, a list, a set."""

    __slots__ = ()


OTHER = Other()
