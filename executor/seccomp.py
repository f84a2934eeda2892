"""The seccomp filter of a sandbox: an allowlist of system calls, as a BPF program and as Docker's profile."""

from __future__ import annotations

import errno
import functools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass

# What CPython, glibc, OpenMP runtimes, torch, onnxruntime and multiprocessing call while they compute, read their
# inputs and write their output. Left out on purpose, and so refused: ptrace, process_vm_*, kcmp, pidfd_getfd, mount
# and the new mount calls, pivot_root, chroot, unshare, setns, keyctl and its kin, bpf, perf_event_open, userfaultfd,
# io_uring_*, kexec_*, module loading, swap, reboot, clocks, quotas, acct, mknod, personality, name_to_handle,
# fanotify, syslog, listening and connecting by address family (see socket below).
_ALLOWED = """
access alarm arch_prctl brk capget capset chdir chmod chown clock_getres clock_gettime clock_nanosleep close
close_range copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2
epoll_wait eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64 fallocate fchdir fchmod
fchmodat fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fork fstat fstatfs fsync ftruncate futex
futex_waitv futimesat get_mempolicy get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid geteuid
getgid getgroups getitimer getpgid getpgrp getpid getppid getpriority getrandom getresgid getresuid getrlimit
getrusage getsid gettid gettimeofday getuid getxattr inotify_add_watch inotify_init inotify_init1 inotify_rm_watch
ioprio_get kill lchown lgetxattr link linkat listxattr llistxattr lseek lstat madvise mbind membarrier memfd_create
mincore mkdir mkdirat mlock mlock2 mlockall mmap mprotect mremap msync munlock munlockall munmap nanosleep newfstatat
open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll
pread64 preadv preadv2 prlimit64 pselect6 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv rename
renameat renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn
rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity
sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_setaffinity sched_yield select semctl
semget semop semtimedop sendfile set_mempolicy set_robust_list set_tid_address setfsgid setfsuid setgid setgroups
setitimer setpgid setpriority setregid setresgid setresuid setreuid setrlimit setsid setuid shmat shmctl shmdt shmget
sigaltstack signalfd signalfd4 splice stat statfs statx symlink symlinkat sync_file_range sysinfo tee tgkill time
timer_create timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime
times tkill truncate umask uname unlink unlinkat utime utimensat utimes vfork vmsplice wait4 waitid waitpid write
writev accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg recvmsg sendmmsg
sendmsg sendto setsockopt shutdown landlock_create_ruleset landlock_add_rule landlock_restrict_self
"""

# CLONE_NEW* (NS, CGROUP, UTS, IPC, USER, PID, NET); CLONE_NEWTIME shares a bit with the exit signal and exists only
# in clone3, which is refused.
_NEW_NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
_AF_UNIX = 1
# Terminal state and sizes, FIONREAD, FIONBIO, FIOCLEX, FIONCLEX. TIOCSTI, which types into a terminal, is not here.
_IOCTLS = (0x5401, 0x5413, 0x540F, 0x541B, 0x5421, 0x5450, 0x5451)
_GPU_IOCTLS = ((0x4600, 0xFF00), (0, 0xFFFFFF00), (0x30000001, 0xFFFFFFFF), (0x30000002, 0xFFFFFFFF))
"""Value and mask. NVIDIA's driver takes type 'F' (0x46) of any number, size and direction, its nvidia-uvm plain numbers
below 256 and two to begin and end. A filter can't see which file is asked; TIOCSTI is not among them."""
# PR_SET_PDEATHSIG, _GET_PDEATHSIG, _GET_DUMPABLE, _GET/_SET_KEEPCAPS, _SET/_GET_NAME, _CAPBSET_READ/_DROP,
# _GET/_SET_SECUREBITS, _SET/_GET_TIMERSLACK, _SET/_GET_NO_NEW_PRIVS, _GET/_SET_THP_DISABLE, _CAP_AMBIENT,
# PR_SET_VMA (glibc names its arenas). setpriv needs those about capabilities; a process without any gains nothing.
_PRCTLS = (1, 2, 3, 7, 8, 15, 16, 23, 24, 27, 28, 29, 30, 38, 39, 41, 42, 47, 0x53564D41)

# New calls have had one number on every architecture since 424. glibc falls back to an older call on ENOSYS only,
# so what is newer than this list says "not implemented", not "not permitted".
_NEWER_THAN_THIS_LIST = range(450, 512)


@dataclass(frozen=True)
class _Rule:
    """One call: allowed, if its argument ``index``, masked, is ``value``; or refused with ``errno``."""

    call: str
    index: int | None = None
    value: int = 0
    mask: int | None = None
    errno: int | None = None


def _rules(gpu: bool) -> Iterator[_Rule]:
    for name in _ALLOWED.split():
        yield _Rule(name)
    yield _Rule("clone", 0, 0, mask=_NEW_NAMESPACES)
    # Its flags are in memory, where a filter cannot look: glibc falls back to clone.
    yield _Rule("clone3", errno=errno.ENOSYS)
    for call in ("socket", "socketpair"):
        yield _Rule(call, 0, _AF_UNIX)
    for request in _IOCTLS:
        yield _Rule("ioctl", 1, request)
    for value, mask in _GPU_IOCTLS if gpu else ():
        yield _Rule("ioctl", 1, value, mask=mask)
    for option in _PRCTLS:
        yield _Rule("prctl", 0, option)


@functools.cache
def program(*, gpu: bool = False) -> bytes:
    """Return the filter as a BPF program for ``bwrap --seccomp``; everything not allowed fails with EPERM.

    With ``gpu`` it lets through what the driver is asked by.

    Calls of another architecture (32-bit, x32) kill the process. Raises RuntimeError or ImportError when libseccomp
    is missing.
    """
    import pyseccomp as seccomp  # looks the C library up, which costs 50 ms: only who starts a sandbox pays

    filter_ = seccomp.SyscallFilter(seccomp.ERRNO(errno.EPERM))
    for rule in _rules(gpu):
        number = seccomp.resolve_syscall(seccomp.Arch.NATIVE, rule.call)
        if number < 0:  # this architecture or libseccomp has no such call
            continue
        action = seccomp.ALLOW if rule.errno is None else seccomp.ERRNO(rule.errno)
        if rule.index is None:
            filter_.add_rule(action, number)
        elif rule.mask is None:
            filter_.add_rule(action, number, seccomp.Arg(rule.index, seccomp.EQ, rule.value))
        else:
            filter_.add_rule(action, number, seccomp.Arg(rule.index, seccomp.MASKED_EQ, rule.mask, rule.value))
    for number in _NEWER_THAN_THIS_LIST:
        filter_.add_rule(seccomp.ERRNO(errno.ENOSYS), number)
    descriptor = os.memfd_create("seccomp")
    try:
        with os.fdopen(os.dup(descriptor), "wb") as sink:
            filter_.export_bpf(sink)
        return os.pread(descriptor, 1 << 20, 0)
    finally:
        os.close(descriptor)


@functools.cache
def docker_profile(*, gpu: bool = False) -> str:
    """Return the same filter as the JSON of a Docker seccomp profile.

    What is newer than the list is answered with ENOSYS by runc itself (1.0.0 and newer). Without a list of
    architectures a profile is for the native one, and calls of another kill the process.
    """
    syscalls = []
    for rule in _rules(gpu):
        entry: dict[str, object] = {"names": [rule.call], "action": "SCMP_ACT_ALLOW"}
        if rule.errno is not None:
            entry |= {"action": "SCMP_ACT_ERRNO", "errnoRet": rule.errno}
        if rule.index is not None:
            value = (rule.value, 0) if rule.mask is None else (rule.mask, rule.value)
            comparison = "SCMP_CMP_EQ" if rule.mask is None else "SCMP_CMP_MASKED_EQ"
            entry["args"] = [{"index": rule.index, "value": value[0], "valueTwo": value[1], "op": comparison}]
        syscalls.append(entry)
    return json.dumps({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": syscalls})
