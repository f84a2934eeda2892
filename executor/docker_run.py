"""Waits for a container: streams its log and progress, watches its limits, and ends it for certain."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executor.cgroup import Cgroup
from executor.sandbox import Ending, Observers
from executor.stops import ASK_EVERY_S, TICK_S, cancelled, out_of_memory, out_of_time
from executor.watch import Log, Progress, WorkspaceWatch
from schemas.errors import ModeliumError, SandboxCrashed
from schemas.step_run import Limits

if TYPE_CHECKING:
    import docker

_READ_BYTES = 1 << 16
_READS_A_TICK = 64
_GRACE_S = 5.0
_HEADER_BYTES = 8
_LOG_STREAM = 1


class ContainerRun:
    """One container from its start to its end; :meth:`close` leaves nothing of it, whatever happened before."""

    def __init__(
        self, client: docker.APIClient, container: str, *, out: Path, limits: Limits, observers: Observers
    ) -> None:
        self._client, self._id, self._limits = client, container, limits
        self._should_stop = observers.should_stop
        self._log = Log(limits.log_bytes, observers.on_log)
        self._progress = Progress(observers.on_progress)
        self._watch = WorkspaceWatch(out, limits, lambda: self._group.pids())
        self._group = Cgroup("", {})
        self._init: int | None = None  # pidfd of process 1, where it can be seen from here
        self._streams = _Streams(client, container)
        self._end = _End(client, container)
        self._cpu_s: float | None = None
        self._peak_bytes = 0
        self._oom = False

    def execute(self) -> Ending:
        """Start the container and return how it ended."""
        began = time.monotonic()
        self._client.start(self._id)
        self._end.start()
        self._find()
        error = self._wait(began)
        if error is not None:
            self._kill()
        exit_code = self._drain(began)
        if self._end.lost is not None:
            error = _engine_lost(self._end.lost)
        elif self._oom:
            error = out_of_memory(self._limits, self._peak_bytes)
        return Ending(
            exit_code=exit_code,
            error=error,
            log=self._log.finish(),
            wall_s=time.monotonic() - began,
            cpu_s=self._cpu_s,
            peak_memory_bytes=self._peak_bytes or None,
        )

    def close(self) -> bool:
        """End the container whatever happens, and remove it; return False where its engine is gone and it remains."""
        from docker.errors import DockerException
        from requests import RequestException

        if self._init is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._init, signal.SIGKILL)
            os.close(self._init)
        self._streams.close()
        try:
            self._client.remove_container(self._id, force=True, v=True)
        except (DockerException, RequestException):
            return False
        finally:
            if self._end.is_alive():
                self._end.join(_GRACE_S)
        return True

    def _find(self) -> None:
        """Look for the container's process 1 and its control groups on this machine."""
        pid = int(self._client.inspect_container(self._id)["State"]["Pid"])
        if pid:
            self._group = Cgroup.of(pid, self._id)
            if self._group.hierarchies:
                with contextlib.suppress(ProcessLookupError):
                    self._init = os.pidfd_open(pid)

    def _wait(self, began: float) -> ModeliumError | None:
        deadline, ask_at, sample_at = began + self._limits.timeout_s, began, 0.0
        while True:
            now = time.monotonic()
            self._read(max(0.0, min(TICK_S, deadline - now)))
            self._progress.flush()
            if self._end.came.is_set():
                return self._watch.scan()
            now = time.monotonic()
            if now >= deadline:
                return out_of_time(self._limits, now - began)
            if now >= ask_at:
                ask_at = now + ASK_EVERY_S
                if self._should_stop is not None and self._should_stop():
                    return cancelled()
            if now >= sample_at:
                sample_at = now + TICK_S
                if (error := self._watch.check() or self._sample()) is not None:
                    return error

    def _read(self, patience_s: float) -> None:
        if self._streams.at_end:
            self._end.came.wait(patience_s)
            return
        for stream, chunk in self._streams.read(patience_s):
            if stream == _LOG_STREAM:
                self._log.feed(chunk)
            else:
                self._progress.feed(chunk)

    def _sample(self) -> ModeliumError | None:
        used = self._group.memory_bytes()
        self._cpu_s = self._group.cpu_s() or self._cpu_s
        self._peak_bytes = max(self._peak_bytes, used or 0)
        # One process killed for want of memory spoils the step, whatever the others still wait for.
        return out_of_memory(self._limits, self._peak_bytes) if self._group.oom_kills() else None

    def _kill(self) -> None:
        from docker.errors import APIError

        self._read(0)
        self._streams.close()  # an engine that waits for somebody to read a flood does not end the container
        with contextlib.suppress(APIError):  # it has just ended by itself
            self._client.kill(self._id)

    def _drain(self, began: float) -> int:
        """Read what is left in the streams, and return the exit code."""
        self._end.came.wait(_GRACE_S)
        deadline = time.monotonic() + _GRACE_S
        while not self._streams.at_end and time.monotonic() < deadline:
            self._read(TICK_S)
        self._progress.flush(final=True)
        if self._end.lost is not None or not self._end.came.is_set():
            return 128 + signal.SIGKILL
        state: dict[str, Any] = self._client.inspect_container(self._id)["State"]
        self._oom = bool(state["OOMKilled"])
        return int(state["ExitCode"])


class _Streams:
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


class _End(threading.Thread):
    """Waits for the container to end, for as long as that takes; ``lost`` is why the engine could not tell."""

    def __init__(self, client: docker.APIClient, container: str) -> None:
        super().__init__(name=f"container {container[:12]}", daemon=True)
        self._client, self._id = client, container
        self.came = threading.Event()
        self.lost: Exception | None = None

    def run(self) -> None:
        from docker.errors import DockerException
        from requests import RequestException

        try:
            self._client.wait(self._id, timeout=None)
        except (DockerException, RequestException) as error:
            self.lost = error
        finally:
            self.came.set()


def _engine_lost(error: Exception) -> SandboxCrashed:
    return SandboxCrashed(
        f"The Docker engine went away while the step ran ({type(error).__name__}).",
        hint="Start it again, then: modelium retry.",
    )
