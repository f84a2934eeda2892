"""The store's lock: what is stored and not recorded as needed yet is kept from the collector."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from modelium import machine_lease
from modelium.home import Home


@contextmanager
def kept(home: Home) -> Iterator[None]:
    """Keep the collector away while something is stored, or found stored, and not recorded as needed yet."""
    with machine_lease.locked(home.store_lock, exclusive=False):
        yield


@contextmanager
def collecting(home: Home) -> Iterator[None]:
    """Wait until nobody is in between, and keep everybody out of it meanwhile."""
    with machine_lease.locked(home.store_lock):
        yield
