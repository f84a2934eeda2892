"""Finds out by trying it whether a step that needs a GPU can run in a sandbox."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from executor.sandbox import Command, Sandbox
from schemas.errors import ToolchainMissing
from schemas.step_run import Limits

_LOOK = """
import ctypes, json
try:
    cuda = ctypes.CDLL("libcuda.so.1")
except OSError as error:
    print(json.dumps({"why": f"the driver's library can't be loaded ({error})"}))
else:
    status, count = cuda.cuInit(0), ctypes.c_int()
    if status == 0:
        status = cuda.cuDeviceGetCount(ctypes.byref(count))
    print(json.dumps({"gpus": count.value} if status == 0 else {"why": f"CUDA does not start (error {status})"}))
"""


def gpus_in(sandbox: Sandbox, interpreter: Path) -> int:
    """Return how many GPUs CUDA finds in ``sandbox`` when a step needs one. Raises ToolchainMissing with what to do."""
    with tempfile.TemporaryDirectory(prefix="modelium-probe-") as folder:
        argv = (str(interpreter), "-I", "-S", "-c", _LOOK)
        command = Command(argv, Path(folder), interpreter, Limits(timeout_s=60), gpus=1)
        ending = sandbox.execute(command)
    try:
        seen = json.loads(ending.log.strip().splitlines()[-1])
    except (ValueError, IndexError):
        seen = {"why": str(ending.error or ending.log.strip()[-300:] or f"the program ended with {ending.exit_code}")}
    if not seen.get("gpus"):
        raise ToolchainMissing(
            f"The {sandbox.name} sandbox shows a step its GPU, and {seen.get('why', 'CUDA finds none')}.",
            hint="Look whether nvidia-smi works outside of it, and whether the driver is as new as CUDA needs it.",
        )
    return int(seen["gpus"])
