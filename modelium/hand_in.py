"""Hand in: give a drop to the ``modelium up`` of its home, which takes it while this process still imports.

Imports nothing but the standard library: the database and the documents take 0.5 s to import, as long as it takes
``modelium up``, which has them, to store a model and have its first step at work.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from modelium import __version__
from modelium.home import Home

PROTOCOL = f"{__version__}/1"
CANCEL = b"cancel\n"
_PREFIX = "MODELIUM_"
_HOME = "MODELIUM_HOME"
_CONNECT_S = 2.0
Message: TypeAlias = dict[str, Any]
Kind: TypeAlias = Literal["declined", "error", "jobs", "update", "end"]


def settings_stamp(environ: Mapping[str, str]) -> str:
    """Return what is equal for environments that set the same, wherever their home is."""
    mine = sorted((k, v) for k, v in environ.items() if k.upper().startswith(_PREFIX) and k.upper() != _HOME)
    return hashlib.sha256(json.dumps(mine).encode()).hexdigest()


class HandedIn:
    """A drop in the hands of a ``modelium up``, which tells of its jobs over ``connection``."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lines = connection.makefile("rb")
        self.job_ids: list[str] | None = None
        """None until the drop is recorded; afterwards whoever follows can follow its jobs in the database as well."""

    def to_the_end(self, show: Callable[[Message], None]) -> Message | None:
        """Follow the jobs to their ends; an interrupt cancels those that have not ended, and waits for that.

        Returns what ``modelium up`` tells of them then (``accounts``, ``status``, ``one``), or, where it refuses the
        drop, the document of its ``error``. None where it has ended before, or leaves the drop to the caller.
        """
        try:
            try:
                return self._end(show)
            except KeyboardInterrupt:
                with contextlib.suppress(OSError):
                    self._connection.sendall(CANCEL)
                return self._end(show)
        finally:
            self.close()

    def close(self) -> None:
        """Hear nothing any more; the jobs go on."""
        self._lines.close()
        self._connection.close()

    def _end(self, show: Callable[[Message], None]) -> Message | None:
        with contextlib.suppress(OSError, ValueError):  # it has ended, and with it perhaps a line in the middle
            for line in self._lines:
                ((kind, said),) = json.loads(line).items()
                if kind == "jobs":
                    self.job_ids = said
                elif kind == "update":
                    show(said)
                elif kind == "error":
                    return {"error": said}
                elif kind == "end":
                    return dict(said)
                else:
                    return None
        return None


def hand_in(home: str | None, path: Path, target: Message | None = None) -> HandedIn | None:
    """Offer what is at ``path`` to the ``modelium up`` of ``home``; None when none runs there.

    It declines, once it is followed, what it would take otherwise than this process: under other settings, or where
    another file stands at that path for it (in a container that shares the home).
    """
    chosen = home if home is not None else _home_of(os.environ)
    place = Home(Path(chosen).expanduser().absolute()).reception
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(_CONNECT_S)
        connection.connect(str(place))
        found = path.lstat()
        request = {
            "protocol": PROTOCOL,
            "settings": settings_stamp(os.environ),
            "path": str(path.absolute()),
            "file": [found.st_dev, found.st_ino],
            "target": target,
        }
        connection.sendall(json.dumps(request).encode() + b"\n")
        connection.settimeout(None)
        return HandedIn(connection)
    except OSError:
        connection.close()
        return None


def _home_of(environ: Mapping[str, str]) -> str:
    return next((value for name, value in environ.items() if name.upper() == _HOME), "~/.modelium")
