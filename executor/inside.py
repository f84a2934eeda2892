"""What a program in a sandbox sees, whichever backend runs it: folders, variables, resource limits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from executor.sandbox import PROGRESS_VARIABLE, SANDBOX_UID, Command
from schemas.step_run import Limits

ROOT = Path("/step")
PACKAGES = Path("/opt/modelium")
"""Where the packages that a step needs are seen, wherever they are installed on the host."""
_OUR_PACKAGES = ("schemas", "executor", "analyzer", "converters")

SYSTEM = (Path("/etc/ld.so.cache"), Path("/etc/alternatives"), Path("/sys/devices/system/cpu"))
"""Beside /usr: the loader's cache, what Debian's links go through (BLAS), and the processor's topology."""
MERGED = ("bin", "sbin", "lib", "lib32", "lib64")
"""What leads into /usr by a link, or is a folder of its own on an old distribution."""

PASSWD = f"root:x:0:0::/:/bin/false\nsandbox:x:{SANDBOX_UID}:{SANDBOX_UID}::/tmp:/bin/false\n".encode()
OPEN_FILES = 4096
_TMP_SHARE = 4
_SHM_BYTES = 64 << 20


def tmp_bytes(limits: Limits) -> int:
    """Return the size of ``/tmp``, which counts as memory."""
    return limits.memory_bytes // _TMP_SHARE


def shm_bytes(limits: Limits) -> int:
    """Return the size of ``/dev/shm``."""
    return min(_SHM_BYTES, tmp_bytes(limits))


def cpu_seconds(limits: Limits) -> int:
    """Return the CPU seconds of one process that end what might outlive a killed owner."""
    return math.ceil(limits.timeout_s * max(limits.cpus, 1)) * 2 + 10


def packages() -> Iterator[tuple[Path, Path]]:
    """Yield each of our packages that a step needs: its folder on the host, and inside."""
    ours = Path(__file__).parent.parent
    for package in _OUR_PACKAGES:
        yield ours / package, PACKAGES / package


def environment(command: Command, progress: int) -> dict[str, str]:
    """Return every variable of the program; ``progress`` is the descriptor that it writes its progress to."""
    return {
        "HOME": "/tmp",
        "LANG": "C.UTF-8",
        "LOGNAME": "sandbox",
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(PACKAGES),
        "TMPDIR": "/tmp",
        "TZ": "UTC",
        "USER": "sandbox",
        PROGRESS_VARIABLE: str(progress),
        **command.environment,
    }
