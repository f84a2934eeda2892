from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ingestion.arrival import Arrival
from ingestion.bucket import Bucket
from ingestion.folder import FolderSource
from ingestion.shared_artifacts import SharedArtifacts
from ingestion.store import Store


class Arrivals:
    """Collects what a source reports."""

    def __init__(self) -> None:
        self.all: list[Arrival] = []
        self.at: dict[str, float] = {}
        self._changed = threading.Condition()

    def __call__(self, arrival: Arrival) -> None:
        with self._changed:
            self.all.append(arrival)
            self.at[arrival.relative] = time.monotonic()
            self._changed.notify_all()

    @property
    def names(self) -> list[str]:
        return sorted(arrival.relative for arrival in self.all)

    @property
    def doubled(self) -> dict[str, int]:
        return {k: n for k, n in Counter((a.relative, a.etag) for a in self.all).items() if n > 1}  # type: ignore[misc]

    def wait_for(self, count: int, timeout_s: float = 10) -> list[str]:
        with self._changed:
            self._changed.wait_for(lambda: len(self.all) >= count, timeout_s)
        return self.names


@pytest.fixture
def arrivals() -> Arrivals:
    return Arrivals()


@pytest.fixture
def incoming(tmp_path: Path) -> Path:
    folder = tmp_path / "incoming"
    folder.mkdir()
    return folder


@pytest.fixture
def watch(incoming: Path, arrivals: Arrivals) -> Iterator[Callable[..., FolderSource]]:
    """Start a source with short times; it is stopped at the end of the test."""
    started: list[FolderSource] = []

    def start(**times: float) -> FolderSource:
        times = {"settle_s": 0.2, "folder_quiet_s": 0.4, "rescan_s": 60.0} | times
        source = FolderSource(incoming, arrivals, **times)
        source.start()
        started.append(source)
        return source

    yield start
    for source in started:
        source.stop()


@pytest.fixture
def folder_of() -> Callable[..., Path]:
    """Make a folder of files by their names; ``__`` stands for a slash."""

    def make(root: Path, **files: bytes) -> Path:
        for name, content in files.items():
            place = root / name.replace("__", "/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        return root

    return make


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def machine(cloud: Any, tmp_path: Path) -> Callable[..., Store]:
    """Make the store of a machine, by name: what it has here is its own, the bucket is everybody's."""
    bucket = Bucket(cloud.url, endpoint_url=cloud.endpoint_url)

    def make(name: str, **times: float) -> Store:
        return Store(tmp_path / name, shared=SharedArtifacts(bucket, **times))

    return make
