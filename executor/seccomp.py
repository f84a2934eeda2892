"""The seccomp filter of a sandbox: an allowlist of system calls, as a BPF program."""

from __future__ import annotations

import errno
import functools
import os

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
sendmsg sendto setsockopt shutdown
"""

# CLONE_NEW* (NS, CGROUP, UTS, IPC, USER, PID, NET); CLONE_NEWTIME shares a bit with the exit signal and exists only
# in clone3, which is refused.
_NEW_NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
_AF_UNIX = 1
# Terminal state and sizes, FIONREAD, FIONBIO, FIOCLEX, FIONCLEX. TIOCSTI, which types into a terminal, is not here.
_IOCTLS = (0x5401, 0x5413, 0x540F, 0x541B, 0x5421, 0x5450, 0x5451)
# PR_SET_PDEATHSIG, _GET_PDEATHSIG, _GET_DUMPABLE, _GET/_SET_KEEPCAPS, _SET/_GET_NAME, _CAPBSET_READ/_DROP,
# _GET/_SET_SECUREBITS, _SET/_GET_TIMERSLACK, _SET/_GET_NO_NEW_PRIVS, _GET/_SET_THP_DISABLE, _CAP_AMBIENT,
# PR_SET_VMA (glibc names its arenas). setpriv needs those about capabilities; a process without any gains nothing.
_PRCTLS = (1, 2, 3, 7, 8, 15, 16, 23, 24, 27, 28, 29, 30, 38, 39, 41, 42, 47, 0x53564D41)

# New calls have had one number on every architecture since 424. glibc falls back to an older call on ENOSYS only,
# so what is newer than this list says "not implemented", not "not permitted".
_NEWER_THAN_THIS_LIST = range(450, 512)


@functools.cache
def program() -> bytes:
    """Return the filter as a BPF program for ``bwrap --seccomp``; everything not allowed fails with EPERM.

    Calls of another architecture (32-bit, x32) kill the process. Raises RuntimeError or ImportError when libseccomp
    is missing.
    """
    import pyseccomp as seccomp  # looks the C library up, which costs 50 ms: only who starts a sandbox pays

    rules = seccomp.SyscallFilter(seccomp.ERRNO(errno.EPERM))
    for name in _ALLOWED.split():
        number = seccomp.resolve_syscall(seccomp.Arch.NATIVE, name)
        if number >= 0:  # negative: this architecture or libseccomp has no such call
            rules.add_rule(seccomp.ALLOW, number)
    rules.add_rule(seccomp.ALLOW, "clone", seccomp.Arg(0, seccomp.MASKED_EQ, _NEW_NAMESPACES, 0))
    # Its flags are in memory, where a filter cannot look: glibc falls back to clone.
    rules.add_rule(seccomp.ERRNO(errno.ENOSYS), "clone3")
    for call in ("socket", "socketpair"):
        rules.add_rule(seccomp.ALLOW, call, seccomp.Arg(0, seccomp.EQ, _AF_UNIX))
    for request in _IOCTLS:
        rules.add_rule(seccomp.ALLOW, "ioctl", seccomp.Arg(1, seccomp.EQ, request))
    for option in _PRCTLS:
        rules.add_rule(seccomp.ALLOW, "prctl", seccomp.Arg(0, seccomp.EQ, option))
    for number in _NEWER_THAN_THIS_LIST:
        rules.add_rule(seccomp.ERRNO(errno.ENOSYS), number)
    descriptor = os.memfd_create("seccomp")
    try:
        with os.fdopen(os.dup(descriptor), "wb") as sink:
            rules.export_bpf(sink)
        return os.pread(descriptor, 1 << 20, 0)
    finally:
        os.close(descriptor)
