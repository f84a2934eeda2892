"""A container that has its toolchain imported and waits for the one step that it will run."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executor.docker_attached import LOG_STREAM, Attached
from executor.docker_host import DockerHost
from executor.docker_run import ContainerRun
from executor.sandbox import OUT, Command, Ending, Observers
from executor.stops import ASK_EVERY_S, cancelled
from executor.warm_failed import WarmFailed
from executor.warm_protocol import BEGUN, IDLE
from executor.workspace import Workspace, remove_tree
from schemas.step_io import STEP_FILE

if TYPE_CHECKING:
    import docker

_SHOWN = "step"
_ANSWER_S = 30
"""It may be in the middle of an import when it is asked."""
_MOST_FILES = 1000


class WaitingContainer:
    """One of them, with a workspace of its own, from its start to its end."""

    def __init__(self, host: DockerHost, document: Callable[[Path], dict[str, Any]], workspaces: Path) -> None:
        """Make and start it; ``document`` is of the folder that it shows as its workspace."""
        self._host = host
        self.workspace = Workspace(workspaces)
        self.idle = False
        """Whether it has imported all that it will."""
        self._log, self._told = b"", b""
        self._client: docker.APIClient | None = None
        self._container: Attached | None = None
        try:
            self._shown = self.workspace.path / _SHOWN
            for folder in (self._shown, self._shown / "in", self._shown / OUT):
                folder.mkdir()
                folder.chmod(0o755)  # the workspace above is closed to others
            host.open_out(self._shown / OUT)
            with host.translated():
                self._client = host.connect()
                self._container = Attached(self._client, document(self._shown))
                self._container.start()
        except BaseException:
            self.close()
            raise

    @property
    def container(self) -> Attached:
        """The container."""
        assert self._container is not None
        return self._container

    def listen(self, patience_s: float) -> None:
        """Wait a moment for what it says of itself."""
        for stream, chunk in self.container.streams.read(patience_s):
            if stream == LOG_STREAM:
                self._log += chunk
            else:
                self._told += chunk
        self.idle = self.idle or IDLE in self._told

    @property
    def has_ended(self) -> bool:
        """Whether it was seen to have ended before it began a step."""
        return self.container.streams.at_end and BEGUN not in self._told

    def failure(self) -> WarmFailed:
        """Return why it has ended. What ends while it imports would do so again."""
        from docker.errors import DockerException
        from requests import RequestException

        try:
            state = self.container.state()
        except (DockerException, RequestException) as error:
            return WarmFailed(f"it is gone ({type(error).__name__})")
        reason = "its memory was spent" if state["OOMKilled"] else f"status {state['ExitCode']}"
        return WarmFailed(f"it ended before it was asked ({reason})", lasting=not self.idle)

    def memory_bytes(self) -> int | None:
        """Return the memory that it holds, None where that can't be seen from here."""
        return self.container.group.memory_bytes()

    def run(self, command: Command, observers: Observers, began: float) -> Ending:
        """Run ``command``, which is :func:`shown`, in it. Raises WarmFailed while nothing of it has begun.

        The log, progress and time are those of the step alone.
        """
        used_s = self.container.group.cpu_s() or 0.0
        try:
            for name in (*(f"in/{name}" for name in command.inputs), STEP_FILE):
                if (source := command.workspace / _SHOWN / name).exists():
                    source.rename(self._shown / name)
            self.listen(0)
            self.container.streams.send(json.dumps(command.argv[1:]).encode() + b"\n")
        except OSError as error:
            raise WarmFailed(f"it can't be told what to run ({error.strerror or error})") from None
        if not self._meet(observers.should_stop, began + command.limits.timeout_s):
            return Ending(-1, cancelled(), "", time.monotonic() - began, None, None)
        out = self._shown / OUT
        run = ContainerRun(self.container, out=out, limits=command.limits, observers=observers)
        run.take_over(self._log, self._told.partition(BEGUN)[2], used_s)
        return run.follow(began)

    def give_out(self, workspace: Path) -> None:
        """End it, and put what the step wrote where that of a step of ``workspace`` is."""
        self._host.close(self.container)
        (self._shown / OUT).rename(workspace / OUT)

    def close(self) -> None:
        """End and remove it with its workspace."""
        if self._container is not None:
            self._host.close(self._container)
        if self._client is not None:
            self._client.close()
        self.workspace.remove()

    def abandon(self) -> None:
        """Close this process's copies of its descriptors; it belongs to the process that this one was forked from."""
        self.container.abandon()
        self.workspace.abandon()

    def _meet(self, should_stop: Callable[[], bool] | None, deadline: float) -> bool:
        """Wait until the step begins, or its time is over; False when it is not to begin any more."""
        patience = time.monotonic() + _ANSWER_S
        while BEGUN not in self._told and time.monotonic() < deadline:
            if self.has_ended:
                raise self.failure()
            if time.monotonic() > patience:
                raise WarmFailed(f"it did not answer within {_ANSWER_S} s")
            if should_stop is not None and should_stop():
                return False
            self.listen(ASK_EVERY_S)
        return True


@contextlib.contextmanager
def shown(command: Command) -> Iterator[None]:
    """Put what a container is to show of ``command`` into its workspace, ready to be moved. Raises WarmFailed.

    Inputs are links, not copies: that takes no longer for a large model.
    """
    device = command.workspace.parent.stat().st_dev
    if any(path.stat().st_dev != device for path in (command.workspace, *command.inputs.values())):
        raise WarmFailed("its inputs are on another file system than its workspace")
    folder, room = command.workspace / _SHOWN, _Room()
    try:
        try:
            (folder / "in").mkdir(parents=True)
            for name, source in command.inputs.items():
                room.link(source.resolve(), folder / "in" / name)
            if (step := command.workspace / STEP_FILE).exists():
                room.link(step, folder / STEP_FILE)
        except OSError as error:
            raise WarmFailed(f"its inputs can't be linked ({error.strerror or error})") from None
        yield
    finally:
        remove_tree(folder)


class _Room:
    """How many files may still be linked."""

    def __init__(self) -> None:
        self._left = _MOST_FILES

    def link(self, source: Path, place: Path) -> None:
        """Make ``source`` appear at ``place``. Its bytes are the same: the container's mount alone is read-only."""
        self._left -= 1
        mode = source.lstat().st_mode
        if self._left < 0:
            raise WarmFailed(f"its inputs are more than {_MOST_FILES} files")
        if stat.S_ISREG(mode):
            os.link(source, place, follow_symlinks=False)
        elif stat.S_ISDIR(mode):
            place.mkdir()
            place.chmod(0o755)
            for entry in source.iterdir():
                self.link(entry, place / entry.name)
        else:
            raise WarmFailed("its inputs hold more than files and folders")
