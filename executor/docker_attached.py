"""One container from its making to its removal, and the connection that it lives by."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from executor.cgroup import Cgroup

if TYPE_CHECKING:
    import docker

LOG_STREAM = 1
_READ_BYTES = 1 << 16
_READS_A_TICK = 64
_GRACE_S = 5.0
_HEADER_BYTES = 8


class Attached:
    """A container that this process is attached to. :meth:`close` leaves nothing of it, whatever happened before."""

    def __init__(self, client: docker.APIClient, document: dict[str, Any]) -> None:
        """Make the container, which does not run yet. ``client`` belongs to it while it lives."""
        self.client = client
        self.id: str = client.create_container_from_config(document)["Id"]
        self.group = Cgroup("", {})
        self._init: int | None = None  # pidfd of process 1, where it can be seen from here
        self._end: End | None = None
        self.is_closed = False
        try:
            self.streams = Streams(client, self.id)
        except BaseException:
            client.remove_container(self.id, force=True, v=True)
            raise

    def start(self) -> None:
        """Start it, and look for its process 1 and its control groups on this machine."""
        self.client.start(self.id)
        pid = int(self.state()["Pid"])
        if pid:
            self.group = Cgroup.of(pid, self.id)
            if self.group.hierarchies:
                with contextlib.suppress(ProcessLookupError):
                    self._init = os.pidfd_open(pid)

    def end(self) -> End:
        """Return what tells of its end, waited for from now on."""
        if self._end is None:
            self._end = End(self.client, self.id)
            self._end.start()
        return self._end

    def state(self) -> dict[str, Any]:
        """Return what the engine says of it now."""
        state: dict[str, Any] = self.client.inspect_container(self.id)["State"]
        return state

    def kill(self) -> None:
        """Bring its end about."""
        from docker.errors import APIError

        with contextlib.suppress(APIError):  # it has just ended by itself
            self.client.kill(self.id)

    def close(self) -> bool:
        """End it whatever happens, and remove it; return False where its engine is gone and it remains."""
        from docker.errors import DockerException
        from requests import RequestException

        self.is_closed = True
        if self._init is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # only root may; the engine does it below
                signal.pidfd_send_signal(self._init, signal.SIGKILL)
            os.close(self._init)
            self._init = None
        self.streams.close()
        try:
            self.client.remove_container(self.id, force=True, v=True)
        except (DockerException, RequestException):
            return False
        finally:
            if self._end is not None:
                self._end.join(_GRACE_S)
        return True

    def abandon(self) -> None:
        """Close this process's copies of its descriptors; it belongs to the process that this one was forked from."""
        if self._init is not None:
            os.close(self._init)
        self.streams.close()


class Streams:
    """The container's two output streams over one connection; while it is open the container may live."""

    def __init__(self, client: docker.APIClient, container: str) -> None:
        wanted = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
        self._connection = client.attach_socket(container, params=wanted)
        self._descriptor: int = self._connection.fileno()
        os.set_blocking(self._descriptor, False)
        self._stream, self._left, self._header = 0, 0, b""
        self.at_end = False

    def read(self, patience_s: float) -> Iterator[tuple[int, bytes]]:
        """Yield what is there, by stream, but not for ever; wait for the first byte."""
        select.select([self._descriptor], [], [], patience_s)
        for _ in range(_READS_A_TICK):
            try:
                chunk = os.read(self._descriptor, _READ_BYTES)
            except BlockingIOError:
                return
            except ConnectionError:
                chunk = b""
            if not chunk:
                self.at_end = True
                return
            yield from self._parts(chunk)

    def send(self, line: bytes) -> None:
        """Write to the container's input. Raises OSError when it does not take it."""
        while line:
            if not select.select([], [self._descriptor], [], _GRACE_S)[1]:
                raise TimeoutError(errno.ETIMEDOUT, "the container does not read its input")
            line = line[os.write(self._descriptor, line) :]

    def close(self) -> None:
        """Close the connection, which ends the container."""
        self.at_end = True
        self._connection._response.close()

    def _parts(self, chunk: bytes) -> Iterator[tuple[int, bytes]]:
        # Frames: one byte of stream, three of nothing, four of length, big-endian; then as many bytes.
        while chunk:
            if self._left:
                part, chunk = chunk[: self._left], chunk[self._left :]
                self._left -= len(part)
                yield self._stream, part
            else:
                missing = _HEADER_BYTES - len(self._header)
                self._header, chunk = self._header + chunk[:missing], chunk[missing:]
                if len(self._header) == _HEADER_BYTES:
                    self._stream, self._left = self._header[0], int.from_bytes(self._header[4:], "big")
                    self._header = b""


class End(threading.Thread):
    """Waits for the container to end, for as long as that takes; ``lost`` is why the engine could not tell."""

    def __init__(self, client: docker.APIClient, container: str) -> None:
        super().__init__(name=f"container {container[:12]}", daemon=True)
        self._client, self._id = client, container
        self.came = threading.Event()
        self.lost: Exception | None = None

    def run(self) -> None:
        """Wait."""
        from docker.errors import DockerException
        from requests import RequestException

        try:
            self._client.wait(self._id, timeout=None)
        except (DockerException, RequestException) as error:
            self.lost = error
        finally:
            self.came.set()
