"""What /proc tells of the processes of a sandbox: who belongs to it, and what memory and time they took."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def children() -> list[int]:
    """Return the pids of this process's children."""
    children: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            children += map(int, (task / "children").read_text().split())
    return children


def session(pid: int) -> int:
    """Return the session of ``pid``, 0 when it is gone."""
    with contextlib.suppress(OSError):
        return os.getsid(pid)
    return 0


def descendants(pid: int) -> Iterator[int]:
    """Yield ``pid`` and its descendants, as far as they still hang together."""
    waiting = [pid]
    while waiting:
        current = waiting.pop()
        yield current
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{current}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())


def thread_count(pid: int) -> int:
    """Return how many threads one process has; 0 when it is gone."""
    with contextlib.suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[17])
    return 0


def resident_bytes(pid: int) -> int:
    """Return the memory of one process, shared pages included; 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except OSError:
        return 0


def proportional_bytes(pid: int) -> int:
    """Return the memory of one process with its share of what others have mapped too."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return resident_bytes(pid)


def unmapped_bytes(pids: Sequence[int]) -> int:
    """Return what is in memory files (memfd) and can't be among the pages that these processes have mapped."""
    files: dict[int, int] = {}
    shared = 0
    for pid in pids:
        with contextlib.suppress(OSError, IndexError):
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if str(descriptor.readlink()).startswith("/memfd:"):
                        status = descriptor.stat()
                        files[status.st_ino] = status.st_blocks * 512
            shared += int(Path(f"/proc/{pid}/statm").read_text().split()[2]) * _PAGE_BYTES
    return max(0, sum(files.values()) - shared) if files else 0


def available_bytes() -> int | None:
    """Return the memory that the machine can still give out."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def is_ready(pidfd: int, timeout_s: float) -> bool:
    """Whether the process has ended (or the descriptor can be read), after waiting for it."""
    with selectors.DefaultSelector() as selector:
        selector.register(pidfd, selectors.EVENT_READ)
        return bool(selector.select(timeout_s))


def send(pidfd: int, number: signal.Signals) -> None:
    """Signal a process that may be gone."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, number)


def cpu_s(pids: Iterable[int]) -> float:
    """Return the CPU seconds of these processes and of their children that were waited for."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError, IndexError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
    return ticks / _TICKS_PER_S


def anonymous_bytes(pid: int) -> int:
    """Return the memory of one process that is in no file."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0
