"""Runs inside the sandbox: ``python -P -m executor.fork_server CONTROL FILTER TOOLCHAIN`` is a warm parent.

It imports a toolchain once, then forks a child for every request on the socket CONTROL. It reads nothing of a request:
what describes a step is a file that only the child opens, when it has left the parent's namespaces.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import gc
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from executor import confinement, preloading, program
from executor.processes import cpu_s
from executor.warm_protocol import (
    DONE_DESCRIPTOR,
    DONE_VARIABLE,
    FIRST_GROUP,
    FIRST_MOUNT,
    GO,
    HERE,
    IDLE,
    LOG,
    MOST_DESCRIPTORS,
    PROGRESS,
    PROGRESS_DESCRIPTOR,
    READY,
    REPORT,
    REQUEST,
)

_OPENBLAS_PATIENCE_S = 1.0
_OUT_OF_THE_WAY = 500

Program = Callable[[], None]


def main() -> None:
    """Import, serve, and in the process of a step become the program that it asks for."""
    control, filter_descriptor, toolchain = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    system_calls = os.pread(filter_descriptor, 1 << 20, 0)
    os.close(filter_descriptor)
    for name in preloading.first(toolchain):
        preloading.preload(name)
    with socket.socket(fileno=control) as channel:
        os.set_inheritable(control, False)
        become = _serve(channel, system_calls, preloading.later(toolchain))
    become()


def _serve(channel: socket.socket, system_calls: bytes, waiting: Iterator[Callable[[], object]]) -> Program:
    """Fork for each request, for ever; returns in the process of a step."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    own = os.open("/proc/self/ns/pid", os.O_RDONLY)
    _settle(channel)
    _freeze()
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    os.dup2(1, 2)
    channel.send(READY)
    more = True
    while True:
        while more and not select.select([channel], [], [], 0)[0]:
            load = next(waiting, None)
            more = load is not None
            if load is None:
                channel.send(IDLE)
            else:
                load()
                _freeze()
        message, ancillary, _, _ = channel.recvmsg(16, socket.CMSG_SPACE(MOST_DESCRIPTORS * 4), socket.MSG_CMSG_CLOEXEC)
        if not message:
            os._exit(0)
        descriptors = _descriptors(ancillary)
        _settle(channel)
        confinement.call("unshare", confinement.CLONE_NEWPID)
        try:
            child = os.fork()
        except OSError:
            child = -1  # the host sees that nobody answers
        if child == 0:
            channel.close()
            return _Child(descriptors, system_calls).enter()
        confinement.call("setns", own, confinement.CLONE_NEWPID)
        for descriptor in descriptors:
            os.close(descriptor)


def _settle(channel: socket.socket) -> None:
    """Make sure that a fork takes everything along: this is the only thread."""
    if _threads() > 1:
        # OpenBLAS ends its threads before a fork, and makes new ones when it is called next.
        if os.fork() == 0:
            os._exit(0)
        deadline = time.monotonic() + _OPENBLAS_PATIENCE_S
        while (threads := _threads()) > 1:
            if time.monotonic() > deadline:
                channel.send(json.dumps({"unforkable": f"it runs {threads} threads"}).encode())
                os._exit(1)
            time.sleep(0.001)


def _freeze() -> None:
    """Keep the collector of the children away from what is shared: it would copy every page by looking."""
    gc.collect()
    gc.freeze()


def _threads() -> int:
    return sum(1 for _ in Path("/proc/self/task").iterdir())


def _descriptors(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)


class _Child:
    """Process 1 of one step's sandbox, and then the step."""

    def __init__(self, descriptors: Sequence[int], system_calls: bytes) -> None:
        self._descriptors, self._system_calls = descriptors, system_calls

    def enter(self) -> Program:
        """Shut this process in and fork what becomes the step; returns there, the other one waits for it."""
        for number in (signal.SIGCHLD, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)  # process 1 ignores what it does not handle
        report = socket.socket(fileno=self._descriptors[REPORT])
        try:
            groups = self._descriptors[FIRST_GROUP:]
            for group in groups:
                os.write(group, b"0")
                os.close(group)
            os.setsid()
            report.send(HERE)
            _expect_go(report)
            # Made in the parent's namespace of networks: the step finds no trace of it in its own.
            first, second = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            confinement.own_namespaces()
            told, tell = os.pipe()
            step = os.fork()
        except OSError as error:
            _fail(report, error)
        if step:
            second.close()
            self._show(report, first)
            self._wait(step, report.fileno(), told)
        first.close()
        [document] = _expect_go(second)
        request = _read(document)
        second.detach(), report.detach()  # closed with everything else
        return self._become_step(request, tell)

    def _show(self, report: socket.socket, step: socket.socket) -> None:
        """Wait until there is a step, attach its files, and let its process begin."""
        try:
            report.send(READY)
            told = _expect_go(report)
            document, mounts = told[REQUEST], told[FIRST_MOUNT:]
            request = _read(document)
            places = [(mount, *place) for mount, place in zip(mounts, request["mounts"], strict=True)]
            confinement.own_files(places, request["tmp_bytes"], request["shm_bytes"])
            socket.send_fds(step, [GO], [document])
            report.send(READY)
        except OSError as error:
            _fail(report, error)

    def _wait(self, step: int, report: int, told: int) -> NoReturn:
        """Reap everything until the step ends, or says that it is done, and say how.

        The kernel then ends whatever else is here: taking the memory of a step that is done apart, and this process's,
        which is as large, goes on at once. What says so too early, or in the step's place, is ended too early.
        """
        for number, descriptor in enumerate(_out_of_the_way(report, told)):
            os.dup2(descriptor, number)
        os.closerange(2, os.sysconf("SC_OPEN_MAX"))
        woken, wake = os.pipe2(os.O_NONBLOCK)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        confinement.undumpable()
        confinement.no_capabilities()
        confinement.filtered(self._system_calls)
        waiting = select.poll()
        waiting.register(1, select.POLLIN)
        waiting.register(woken, select.POLLIN)
        used_s = 0.0
        while (code := _reaped(step)) is None:
            ready = dict(waiting.poll())
            if woken in ready:
                os.read(woken, 4096)
            if 1 in ready:
                if os.read(1, 1):
                    code, used_s = 0, cpu_s([step])
                    break
                waiting.unregister(1)  # it is closed, and how the step ends is still to be seen
        times = os.times()
        used_s += times.user + times.system + times.children_user + times.children_system
        os.write(0, json.dumps({"exit": code, "cpu_s": used_s}).encode())
        os._exit(0)

    def _become_step(self, request: dict[str, Any], tell: int) -> Program:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        log, progress, done = _out_of_the_way(self._descriptors[LOG], self._descriptors[PROGRESS], tell)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for source, number in ((log, 1), (log, 2), (progress, PROGRESS_DESCRIPTOR)):
            os.dup2(source, number)
        os.dup2(done, DONE_DESCRIPTOR, inheritable=False)
        os.closerange(DONE_DESCRIPTOR + 1, os.sysconf("SC_OPEN_MAX"))
        os.chdir("/step")
        os.environ.clear()
        os.environ.update(request["variables"], **{DONE_VARIABLE: str(DONE_DESCRIPTOR)})
        _reseed()
        confinement.bounded(request["limits"])
        confinement.own_user(request["as_root"])
        confinement.filtered(self._system_calls)
        return lambda: program.run(request["argv"])


def _out_of_the_way(*descriptors: int) -> list[int]:
    """Return copies whose numbers are none that a step has."""
    return [fcntl.fcntl(descriptor, fcntl.F_DUPFD, _OUT_OF_THE_WAY) for descriptor in descriptors]


def _reaped(step: int) -> int | None:
    """Reap what has ended; return the step's exit code once it has, 128 and the signal's number if one ended it."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
            if ended[0] == step:
                code = os.waitstatus_to_exitcode(ended[1])
                return code if code >= 0 else 128 - code
    return None


def _expect_go(channel: socket.socket) -> list[int]:
    """Wait until this process may go on, and return the descriptors that came along; end it if it must not."""
    message, ancillary, _, _ = channel.recvmsg(16, socket.CMSG_SPACE(MOST_DESCRIPTORS * 4), socket.MSG_CMSG_CLOEXEC)
    if message != GO:
        os._exit(1)
    return _descriptors(ancillary)


def _read(document: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(os.pread(document, os.fstat(document).st_size, 0))
    return found


def _fail(report: socket.socket, error: OSError) -> NoReturn:
    with contextlib.suppress(OSError):
        report.send(json.dumps({"failed": str(error)}).encode())
    os._exit(1)


def _reseed() -> None:
    """Give numpy's and torch's generators seeds of their own, as in a new process; Python's does so itself."""
    if (numpy := sys.modules.get("numpy.random")) is not None:
        numpy.seed()
    if (torch := sys.modules.get("torch")) is not None:
        torch.default_generator.seed()


if __name__ == "__main__":
    main()
