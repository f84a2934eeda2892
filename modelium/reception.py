"""Reception: the socket where commands hand drops in to the ``modelium up`` of their home, and hear of their jobs.

One connection a drop: a line of JSON comes in, and a line goes out for every change. Answers this user's processes
only; whoever is not answered does the same without it.
"""

from __future__ import annotations

import json
import logging
import os
import select
import socket
import socketserver
import struct
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from modelium import follow
from modelium.account import build
from modelium.context import Context
from modelium.exit_status import worst
from modelium.hand_in import CANCEL, PROTOCOL, Kind, Message
from modelium.submit import submit_path
from schemas.errors import ModeliumError
from schemas.job import ENDS
from schemas.target import TargetProfile

log = logging.getLogger(__name__)
_LONGEST_REQUEST_BYTES = 1 << 16
_SILENCE_S = 10.0
"""For a request to come, or for one who reads no more."""
_CREDENTIALS = struct.Struct("3i")
"""The kernel's struct ucred: pid, uid, gid (unix(7))."""


class Reception:
    """Takes drops while it is open, each in a thread of its own. ``stamp`` is that of the settings ``context`` has."""

    def __init__(self, context: Context, stamp: str) -> None:
        self._place = context.home.reception
        self._place.unlink(missing_ok=True)

        class Desk(_Desk):
            pass

        self._closing = threading.Event()
        Desk.context, Desk.stamp, Desk.closing = context, stamp, self._closing
        self._server = _Server(str(self._place), Desk)

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.2,), name="reception", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._place.unlink(missing_ok=True)
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """Leave the drop to who handed it in, whose connection ends."""
        log.exception("a drop that was handed in could not be taken")


class _Desk(socketserver.StreamRequestHandler):
    """One drop, from the request to its jobs' ends."""

    context: Context
    stamp: str
    closing: threading.Event
    timeout = _SILENCE_S

    def handle(self) -> None:
        """Answer one request. Who has gone meanwhile leaves jobs that go on."""
        try:
            self._answer()
        except ConnectionError:
            return
        except ModeliumError as error:
            self._say("error", error.document().model_dump(mode="json"))

    def _answer(self) -> None:
        connection = self.connection
        size = _CREDENTIALS.size
        _, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
        request = json.loads(self.rfile.readline(_LONGEST_REQUEST_BYTES) or b"{}")
        why = self._why_not(uid, request)
        if why:
            self._say("declined", why)
            return
        target = TargetProfile.model_validate(request["target"]) if request["target"] else None
        from ingestion.drops import is_group

        context, path = self.context, Path(request["path"])
        ids = submit_path(context, path, target)
        self._say("jobs", ids)
        follow.watch(context, ids, lambda update: self._say("update", vars(update)), lambda: self._is_over(ids))
        accounts = [build(context, job_id) for job_id in ids]
        if any(account.state not in ENDS for account in accounts):
            return  # whoever still listens goes on without us
        self._say(
            "end",
            {
                "accounts": [account.model_dump(mode="json") for account in accounts],
                "one": len(ids) == 1 and not is_group(path),
                "status": worst(account.job for account in accounts),
            },
        )

    def _why_not(self, uid: int, request: Message) -> str:
        if uid != os.getuid():
            return "another user"
        if request.get("protocol") != PROTOCOL:
            return "another version"
        if request["settings"] != self.stamp:
            return "other settings"
        try:
            found = os.lstat(request["path"])
        except OSError:
            return "not to be seen from here"
        return "" if [found.st_dev, found.st_ino] == request["file"] else "another file"

    def _is_over(self, ids: list[str]) -> bool:
        """Whether nobody listens or tells any more; cancels what has not ended when that is asked."""
        if self.closing.is_set():
            return True
        if not select.select([self.connection], [], [], 0)[0]:
            return False
        if self.connection.recv(len(CANCEL)) != CANCEL:
            return True
        follow.cancel(self.context, ids)
        return False

    def _say(self, kind: Kind, what: Any) -> None:
        self.wfile.write(json.dumps({kind: what}).encode() + b"\n")
