"""Peers: environments of their own for Optimum and Olive, built once below .cache/peers.

Optimum's exporter holds transformers below version 5 and Olive declares too little; neither can live beside Modelium.
"""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
from pathlib import Path

CACHE = Path(__file__).parent.parent / ".cache/peers"
_COMMON = ("torch==2.13.0", "onnx==1.23.2", "onnxruntime==1.31.1", "numpy==2.4.6")
REQUIREMENTS: dict[str, tuple[str, ...]] = {
    "optimum": (*_COMMON, "optimum-onnx==0.1.0", "optimum==2.1.0", "transformers==4.57.6", "datasets"),
    "olive": (
        *_COMMON,
        "olive-ai==0.13.0",
        "requests",
        "transformers==4.57.6",
        "onnxscript",
        "optimum-onnx==0.1.0",
        "optimum==2.1.0",
    ),
}
"""Peer to what its environment is made of. torch is named exactly: any other spelling fetches gigabytes of CUDA."""


def interpreter(peer: str) -> Path:
    """Return the peer's Python, after building its environment where there is none yet (a few minutes).

    Safe to call from several processes at once. Raises CalledProcessError with pip's words on standard error.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    folder, wanted = CACHE / peer, "\n".join(REQUIREMENTS[peer]) + "\n"
    stamp = hashlib.sha256(wanted.encode()).hexdigest()[:16]
    with (CACHE / f"{peer}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ready = folder / ".ready"
        if not ready.is_file() or ready.read_text() != stamp:
            print(f"building {peer}'s environment in {folder}", file=sys.stderr)
            subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
            (folder / "requirements.txt").write_text(wanted)
            pip = [folder / "bin/python", "-m", "pip", "--disable-pip-version-check", "install", "-q"]
            # torch first and alone: it must not be resolved together with what asks for another build of it.
            subprocess.run([*pip, REQUIREMENTS[peer][0]], check=True)
            subprocess.run([*pip, "-c", folder / "requirements.txt", "-r", folder / "requirements.txt"], check=True)
            ready.write_text(stamp)
    return folder / "bin/python"


if __name__ == "__main__":
    for name in sys.argv[1:] or REQUIREMENTS:
        print(interpreter(name))
