"""Runs inside the sandbox: how a process forked from a warm parent shuts itself in before it touches a step.

It does with system calls what bubblewrap and setpriv do for a cold start. The caller has one thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
from collections.abc import Mapping, Sequence
from pathlib import Path

UID = 65534
CLONE_NEWPID = 0x20000000
_CLONE_NEWUSER = 0x10000000
# Mounts, control groups, host name, IPC, network.
_OWN_NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x40000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 0x20, 0x1000, 0x4000, 0x40000
_SYS_OPEN_TREE, _OPEN_TREE_CLONE = 428, 1
_SYS_MOVE_MOUNT, _AT_FDCWD, _MOVE_MOUNT_F_EMPTY_PATH = 429, -100, 4
_PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 4, 22, 24, 38, 47
_PR_CAP_AMBIENT_CLEAR_ALL, _SECCOMP_MODE_FILTER = 4, 2
_CAPABILITY_VERSION_3 = 0x20080522
_FILTER_STEP_BYTES = 8
_STEP = "/step"
_WRITABLE_PROC = ("sys", "sysrq-trigger", "irq", "bus")

_libc = ctypes.CDLL(None, use_errno=True)


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_char_p))


def call(name: str, *arguments: object) -> None:
    """Call a function of the C library; raise OSError with its name when it fails."""
    if getattr(_libc, name)(*arguments) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def own_namespaces() -> None:
    """Leave the parent's namespaces for new ones; that of processes was new at the fork."""
    call("unshare", _OWN_NAMESPACES)
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)


def own_files(mounts: Sequence[tuple[int, str, bool]], tmp_bytes: int, shm_bytes: int) -> None:
    """Cover what the parent has in common with its children, and attach the step's files.

    ``mounts`` are detached mounts with their place below ``/step``, and whether it is a folder.
    """
    apart = _MS_NOSUID | _MS_NODEV
    for place, size_bytes in (("/tmp", tmp_bytes), ("/dev/shm", shm_bytes)):
        below = [(_detached(point), point, Path(point).is_dir()) for point in _mounts_below(place)]
        _mount("tmpfs", place, "tmpfs", apart, f"mode=1777,size={size_bytes}")
        for descriptor, point, is_folder in below:  # an installation may lie there
            _attach(descriptor, Path(point), is_folder)
            os.close(descriptor)
    _mount("devpts", "/dev/pts", "devpts", _MS_NOSUID | _MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620")
    _mount("proc", "/proc", "proc", apart | _MS_NOEXEC)
    for name in _WRITABLE_PROC:
        place = f"/proc/{name}"
        if Path(place).exists():
            _mount(place, place, None, _MS_BIND)
            _mount(None, place, None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | apart | _MS_NOEXEC)
    _mount("tmpfs", _STEP, "tmpfs", apart, "mode=0755")
    for descriptor, name, is_folder in mounts:
        _attach(descriptor, Path(_STEP, name), is_folder)
    _mount(None, _STEP, None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | apart)
    # Process 1 has seen what a step must not reach. Last: it is this very process.
    _mount("tmpfs", "/proc/1", "tmpfs", apart | _MS_RDONLY, "mode=0555,size=4096")


def _mounts_below(place: str) -> list[str]:
    """Return where else something is mounted below ``place``, outer ones first."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = (line.split(" ")[4].encode().decode("unicode_escape") for line in lines)
    return [point for point in points if point.startswith(f"{place}/")]


def _detached(point: str) -> int:
    """Return a descriptor of a copy of what is mounted at ``point``, with its flags."""
    at = ctypes.c_char_p(os.fsencode(point))
    descriptor: int = _libc.syscall(_SYS_OPEN_TREE, _AT_FDCWD, at, _OPEN_TREE_CLONE | os.O_CLOEXEC)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), f"open_tree: {os.strerror(ctypes.get_errno())} ({point})")
    return descriptor


def _attach(descriptor: int, point: Path, is_folder: bool) -> None:
    (point if is_folder else point.parent).mkdir(mode=0o755, parents=True, exist_ok=True)
    if not is_folder:
        point.touch(mode=0o644)
    empty, at = ctypes.c_char_p(b""), ctypes.c_char_p(os.fsencode(point))
    call("syscall", _SYS_MOVE_MOUNT, descriptor, empty, _AT_FDCWD, at, _MOVE_MOUNT_F_EMPTY_PATH)


def bounded(limits: Mapping[str, int]) -> None:
    """Set the limits of this process, by the names that ``prlimit`` has for them."""
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name.upper()}"), (value, value))


def own_user(as_root: bool) -> None:
    """Become the user that owns nothing, for good; without root in a user namespace of its own."""
    if as_root:
        _bounded_capabilities()
        os.setgroups([])
        os.setresgid(UID, UID, UID)
        os.setresuid(UID, UID, UID)
    else:
        uid, gid = os.getuid(), os.getgid()
        call("unshare", _CLONE_NEWUSER)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{UID} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{UID} {gid} 1")
        _bounded_capabilities()
    no_capabilities()
    # A change of user hides /proc/self from its own process; a cold start gets it back from exec.
    call("prctl", _PR_SET_DUMPABLE, 1, 0, 0, 0)


def _bounded_capabilities() -> None:
    for capability in range(64):
        with contextlib.suppress(OSError):  # as many as this kernel has
            call("prctl", _PR_CAPBSET_DROP, capability, 0, 0, 0)


def no_capabilities() -> None:
    """Give up every capability and every way to get one."""
    call("prctl", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    call("capset", ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)()))
    call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def filtered(program: bytes) -> None:
    """Load the filter of system calls; nothing takes it off again."""
    steps = _Filter(len(program) // _FILTER_STEP_BYTES, program)
    call("prctl", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(steps), 0, 0)


def undumpable() -> None:
    """Shut this process's memory to others of the same user."""
    call("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0)


def _mount(source: str | None, place: str, kind: str | None, flags: int, options: str = "") -> None:
    texts = [None if text is None else text.encode() for text in (source, place, kind)]
    try:
        call("mount", *texts, ctypes.c_ulong(flags), options.encode())
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror} ({place})") from None
