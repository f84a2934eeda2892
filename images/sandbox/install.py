"""Runs inside the build: makes /opt/toolchains/NAME of /context/wheels/NAME, compiled, without what no step uses."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

CONTEXT, PLACE = Path("/context/wheels"), Path("/opt/toolchains")
UNUSED = (
    "torch/include",
    "torch/share",
    "torch/test",
    "onnx/backend/test",
    "**/tests",
    "**/*.a",
    "**/*.pyi",
)


def python(*arguments: str | Path) -> None:
    """Run this interpreter."""
    subprocess.run([sys.executable, *arguments], check=True)


def main() -> None:
    """Install every environment."""
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, check=False).returncode:
        python("-m", "ensurepip")
    for wheels in sorted(CONTEXT.iterdir()):
        place = PLACE / wheels.name
        python("-m", "venv", "--without-pip", place)
        pip = ("-m", "pip", "--disable-pip-version-check", "--python", place / "bin" / "python")
        # Every wheel that was fetched, and no other: what they need of each other was settled outside.
        found = sorted(wheels.glob("*.whl"))
        python(*pip, "install", "-q", "--no-index", "--no-deps", "--no-compile", "--root-user-action=ignore", *found)
        [libraries] = place.glob("lib/python3*/site-packages")
        for pattern in UNUSED:
            for path in list(libraries.glob(pattern)):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        # Importing torch takes 13 s instead of 5 s where every module has to be compiled first.
        subprocess.run([sys.executable, "-m", "compileall", "-q", "-j", "0", libraries], check=False)


if __name__ == "__main__":
    main()
