"""What comes of a store's uploads and downloads when connections to the S3 server break off."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from ingestion.bucket import Bucket
from ingestion.shared_artifacts import SharedArtifacts
from ingestion.store import Store
from schemas.errors import StoreUnavailable

pytestmark = pytest.mark.s3
CONTENT = os.urandom(12 << 20)


class Cutting:
    """A proxy in front of the server; the first ``cuts`` connections break off after ``after_bytes`` either way."""

    def __init__(self, endpoint_url: str, *, cuts: int, after_bytes: int) -> None:
        self._port = urlsplit(endpoint_url).port
        self._cuts, self._after_bytes = cuts, after_bytes
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint_url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.cut = 0
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                self._threads.append(threading.Thread(target=self._connect, args=(client,)))
                self._threads[-1].start()

    def _connect(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._port)) as server:
            back = threading.Thread(target=self._carry, args=(server, client))
            back.start()
            self._carry(client, server)
            back.join()

    def _carry(self, here: socket.socket, there: socket.socket) -> None:
        carried = 0
        with contextlib.suppress(OSError):
            while data := here.recv(1 << 16):
                there.sendall(data)
                carried += len(data)
                if carried > self._after_bytes and self.cut < self._cuts:
                    self.cut += 1
                    break
        for end in (here, there):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def through(cloud: Any, tmp_path: Path) -> Iterator[Callable[..., tuple[Store, Cutting]]]:
    """Make a store whose connections break off."""
    with contextlib.ExitStack() as stack:

        def make(name: str, **cuts: int) -> tuple[Store, Cutting]:
            proxy = stack.enter_context(contextlib.closing(Cutting(cloud.endpoint_url, **cuts)))
            bucket = Bucket(cloud.url, endpoint_url=proxy.endpoint_url)
            stack.callback(lambda: bucket._client.close())
            return Store(tmp_path / name, shared=SharedArtifacts(bucket)), proxy

        yield make


@pytest.fixture
def drop(tmp_path: Path) -> Path:
    path = tmp_path / "m.pt"
    path.write_bytes(CONTENT)
    return path


def files_here(store: Store) -> list[Path]:
    return [p for p in store.root.rglob("*") if p.is_file() and p.parent.name != "fetching" and p.name != "lock"]


def test_a_download_that_breaks_off_is_taken_up_where_it_broke(
    machine: Callable[..., Store], through: Callable[..., tuple[Store, Cutting]], drop: Path
) -> None:
    sha256 = machine("here").put(drop).sha256
    store, proxy = through("there", cuts=2, after_bytes=5 << 20)
    assert store.path(sha256).read_bytes() == CONTENT and proxy.cut == 2


def test_an_upload_that_breaks_off_is_tried_again(
    machine: Callable[..., Store], through: Callable[..., tuple[Store, Cutting]], drop: Path
) -> None:
    store, proxy = through("here", cuts=2, after_bytes=5 << 20)
    assert machine("there").path(store.put(drop).sha256).read_bytes() == CONTENT and proxy.cut == 2


def test_an_upload_that_always_breaks_off_is_one_sentence_and_leaves_nothing_on_either_side(
    cloud: Any, through: Callable[..., tuple[Store, Cutting]], drop: Path
) -> None:
    store, _ = through("here", cuts=1000, after_bytes=1 << 20)
    with pytest.raises(StoreUnavailable, match="does not answer, or broke off"):
        store.put(drop)
    assert cloud.objects() == [] and files_here(store) == [] and drop.exists()


def test_a_download_that_always_breaks_off_is_one_sentence_and_leaves_nothing(
    machine: Callable[..., Store], through: Callable[..., tuple[Store, Cutting]], drop: Path
) -> None:
    sha256 = machine("here").put(drop).sha256
    store, _ = through("there", cuts=1000, after_bytes=1 << 20)
    with pytest.raises(StoreUnavailable, match="does not answer, or broke off"):
        store.path(sha256)
    assert files_here(store) == [] and not list((store.root / "incoming-tmp").iterdir())
