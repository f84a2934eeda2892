"""The machine that numbers are measured on."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

from schemas.evidence import Machine

_LIBRARIES = (
    "numpy", "onnx", "onnxruntime", "torch", "transformers", "scikit-learn", "skl2onnx", "openvino", "tensorflow",
    "xgboost-cpu", "lightgbm", "catboost",
)  # fmt: skip
_FLAGS = (
    "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx_vnni", "avx512_bf16",
    "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "asimdhp", "bf16", "i8mm", "sve", "sve2",
)  # fmt: skip
"""CPU features that decide how fast float and int8 kernels run, on x86 and on ARM."""


def describe(threads: int) -> Machine:
    """Return this machine, with ``threads`` as what every contender is given; imports no framework."""
    cpu, flags = _cpu()
    return Machine(
        cpu=cpu,
        cpu_flags=tuple(flag for flag in _FLAGS if flag in flags),
        cores=len(os.sched_getaffinity(0)),
        threads=threads,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        os=f"{platform.system()} {platform.release()}",
        versions=versions(),
    )


def _cpu() -> tuple[str, frozenset[str]]:
    name, flags = platform.processor() or platform.machine(), frozenset[str]()
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return name, flags
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip()
        elif key.strip() in ("flags", "Features"):
            flags = frozenset(value.split())
    return name, flags


def versions() -> dict[str, str]:
    """Return the versions of this interpreter's libraries that decide speed."""
    found = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found
