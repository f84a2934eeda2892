"""Landlock: a process gives up, for itself and its children, rights that it will not need.

One more fence where the kernel has it; nothing relies on it.

Numbers and structures are those of linux/landlock.h; what a kernel does not know yet is left out.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION, _PATH_BENEATH, _PR_SET_NO_NEW_PRIVS = 1, 1, 38

_WRITE_FILE, _TRUNCATE, _IOCTL_DEVICE = 1 << 1, 1 << 14, 1 << 15
_CHANGES = {
    # Write, remove folders and files, make devices, folders, files, sockets, pipes, block devices, links.
    1: sum(1 << bit for bit in (1, 4, 5, 6, 7, 8, 9, 10, 11, 12)),
    2: 1 << 13,  # link or rename into another folder
    3: _TRUNCATE,
    5: _IOCTL_DEVICE,  # of files opened from then on
}
_TCP = {4: 0b11}  # bind, connect
_SCOPES = {6: 0b11}  # abstract unix sockets, signals


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def version() -> int:
    """Return the version of Landlock that this kernel has; 0 for none."""
    return max(0, int(ctypes.CDLL(None).syscall(_CREATE_RULESET, None, 0, _ASK_VERSION)))


def restrict(writable: Iterable[Path]) -> int:
    """Keep this process from changing files that are not in ``writable``, from TCP, and from processes outside.

    Returns the version that was used, 0 where the kernel has none. Raises OSError when a kernel that has it refuses.
    """
    known = version()
    if not known:
        return 0
    changes, tcp, scopes = (
        sum(bits for since, bits in table.items() if since <= known) for table in (_CHANGES, _TCP, _SCOPES)
    )
    ruleset = _Ruleset(changes, tcp, scopes)
    # A kernel refuses a structure with more bits set than it knows; it takes a longer one whose rest is zero.
    rules = _call(_CREATE_RULESET, ctypes.byref(ruleset), ctypes.sizeof(ruleset), 0)
    try:
        for path in writable:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            try:
                allowed = changes if path.is_dir() else changes & (_WRITE_FILE | _TRUNCATE | _IOCTL_DEVICE)
                _call(_ADD_RULE, rules, _PATH_BENEATH, ctypes.byref(_Beneath(allowed, place)), 0)
            finally:
                os.close(place)
        ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        _call(_RESTRICT_SELF, rules, 0)
    finally:
        os.close(rules)
    return known


def _call(number: int, *arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    result = int(libc.syscall(number, *arguments))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"Landlock: {os.strerror(error)}")
    return result
