"""Makes mounts that are attached nowhere yet: whoever gets the descriptor can show the files in its own namespace.

Root does so itself. An ordinary user may only in a user namespace, so a process of its own does it there and hands the
descriptors back: ``python -I -S detached_mounts.py SOCKET`` with the list on standard input.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence

_SYS_OPEN_TREE, _SYS_MOUNT_SETATTR = 428, 442
_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE, _OPEN_TREE_CLONE = -100, 0x1000, 0x8000, 1
_RDONLY, _NOSUID, _NODEV, _PRIVATE = 1, 2, 4, 1 << 18
_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_TIMEOUT_S = 20

Tree = tuple[str, bool]
"""A path and whether it must not be written."""


class _Attributes(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "namespace"))


def detach(trees: Sequence[Tree], as_root: bool) -> list[int]:
    """Return a descriptor of a detached mount for each of ``trees``; the caller closes them. Raises OSError."""
    if as_root:
        return _detach(trees)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(_TIMEOUT_S)
        done = subprocess.run(
            [sys.executable, "-I", "-S", __file__, str(theirs.fileno())],
            input=json.dumps(trees).encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[theirs.fileno()],
            check=False,
            timeout=_TIMEOUT_S,
        )
        if done.returncode:
            raise OSError(done.returncode, done.stdout.decode(errors="replace").strip()[-300:])
        return socket.recv_fds(ours, 1, len(trees))[1]


def _detach(trees: Sequence[Tree]) -> list[int]:
    found: list[int] = []
    try:
        for path, read_only in trees:
            flags = _OPEN_TREE_CLONE | _AT_RECURSIVE | os.O_CLOEXEC
            found.append(_call(_SYS_OPEN_TREE, _AT_FDCWD, ctypes.c_char_p(os.fsencode(path)), flags, about=path))
            wanted = _Attributes(_NOSUID | _NODEV | (_RDONLY if read_only else 0), 0, _PRIVATE, 0)
            size = ctypes.c_size_t(ctypes.sizeof(wanted))
            flags = _AT_EMPTY_PATH | _AT_RECURSIVE
            empty = ctypes.c_char_p(b"")
            _call(_SYS_MOUNT_SETATTR, found[-1], empty, flags, ctypes.byref(wanted), size, about=path)
    except OSError:
        for descriptor in found:
            os.close(descriptor)
        raise
    return found


def _call(number: int, *arguments: object, about: str) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    result = int(libc.syscall(number, *arguments))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), about)
    return result


def _serve(channel: int, trees: Sequence[Tree]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS) < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    with socket.socket(fileno=channel) as sink:
        socket.send_fds(sink, [b"."], _detach(trees))


if __name__ == "__main__":
    try:
        _serve(int(sys.argv[1]), json.load(sys.stdin))
    except OSError as error:
        sys.exit(f"{error.strerror}: {error.filename}")
