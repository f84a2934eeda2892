"""What Modelium costs when nothing happens: resident memory of `modelium up`, and how fast the command starts."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

MODELIUM = Path(sys.executable).parent / "modelium"


def idle_pss(settle_s: float = 12) -> dict[str, float]:
    """Return process name to summed PSS in MB of an idle ``modelium up``."""
    with tempfile.TemporaryDirectory() as home:
        up = subprocess.Popen([MODELIUM, "--home", home, "up", "--json"], stdout=subprocess.DEVNULL)
        try:
            time.sleep(settle_s)
            assert up.poll() is None, "modelium up ended by itself"
            processes = [psutil.Process(up.pid), *psutil.Process(up.pid).children(recursive=True)]
            sizes: dict[str, float] = {}
            for process in processes:
                line = " ".join(process.cmdline())
                name = "supervisor" if process.pid == up.pid else "redis" if "redis" in line else "workers"
                sizes[name] = sizes.get(name, 0) + process.memory_full_info().pss / 1e6
            return {name: round(size, 1) for name, size in sizes.items()}
        finally:
            up.terminate()
            up.wait(timeout=60)


def help_s(runs: int = 15) -> tuple[float, float]:
    """Return median and slowest wall time of ``modelium --help``, in seconds."""
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        subprocess.run([MODELIUM, "--help"], stdout=subprocess.DEVNULL, check=True)
        times.append(time.perf_counter() - began)
    return statistics.median(times), max(times)
