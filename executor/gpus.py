"""What shows an NVIDIA GPU of this machine to a program: its devices, and the driver's libraries."""

from __future__ import annotations

import re
import stat
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from schemas.errors import ToolchainMissing

_DEV = Path("/dev")
_CONTROL = "nvidiactl"
_SHARED_MEMORY = "nvidia-uvm"
"""What CUDA maps its memory through; the driver makes it on first use, or nvidia-modprobe does."""
_NUMBERED = re.compile(r"nvidia([0-9]+)")
_LIBRARIES = ("libcuda.so.1", "libnvidia-ml.so.1")
_SHOWN = tuple(Path("/", name) for name in ("usr", "lib", "lib32", "lib64"))
"""Folders that every sandbox shows already."""

Shown = tuple[Path, Path]


def gpu_devices(count: int, chosen: Sequence[str] = ()) -> list[Shown]:
    """Return the devices of ``count`` GPUs, the first of ``chosen`` or of all: where each is, and where it is seen.

    Raises ToolchainMissing where they are not here.
    """
    if not _is_device(_DEV / _CONTROL):
        raise ToolchainMissing(
            f"The step needs an NVIDIA GPU, and this machine shows none: it has no {Path('/dev', _CONTROL)}.",
            hint="Run Modelium on a machine with a GPU and its driver; in a container, give that the GPU (--gpus).",
        )
    if not _is_device(_DEV / _SHARED_MEMORY):
        raise ToolchainMissing(
            f"This machine's NVIDIA driver has not made {Path('/dev', _SHARED_MEMORY)}, which CUDA needs.",
            hint="Run as root: nvidia-modprobe -u -c=0",
        )
    numbered = sorted(int(found[1]) for path in _DEV.iterdir() if (found := _NUMBERED.fullmatch(path.name)))
    here = [str(number) for number in numbered if _is_device(_DEV / f"nvidia{number}")]
    wanted = (chosen or here)[:count]
    if len(wanted) < count or not set(wanted) <= set(here):
        raise ToolchainMissing(
            f"The step needs GPU {', '.join(chosen) or 'number 0'}, and of this machine's GPUs there is "
            f"{', '.join(here) or 'no device'}.",
            hint="Name one of those in MODELIUM_SANDBOX_GPUS, by number, or none to take the first.",
        )
    names = (_CONTROL, _SHARED_MEMORY, *(f"nvidia{number}" for number in wanted))
    return [(_DEV / name, Path("/dev", name)) for name in names]


def library_folders() -> list[Path]:
    """Return the folders with the driver's libraries that are not shown already, as the loader's cache has them."""
    try:
        told = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return sorted(set(_hidden(told.splitlines())))


def _hidden(cached: Iterable[str]) -> Iterator[Path]:
    for line in cached:
        name, _, path = line.partition(" => ")
        if path and name.split()[0] in _LIBRARIES:
            # The cache names a link; what it leads to is what is loaded.
            for place in {Path(path.strip()).parent, Path(path.strip()).resolve().parent}:
                if not any(place.is_relative_to(folder) for folder in _SHOWN):
                    yield place


def _is_device(path: Path) -> bool:
    try:
        return stat.S_ISCHR(path.stat().st_mode)
    except OSError:
        return False
