"""Toolchains: which interpreter runs a step, what is installed there, and where it lives on disk."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from schemas.errors import ToolchainMissing

LIBRARIES = (
    "torch",
    "transformers",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "scikit-learn",
    "skl2onnx",
    "numpy",
    "protobuf",
)
"""Distributions whose versions decide what a step's output is."""

NEEDED: dict[str, tuple[str, ...]] = {
    "onnx": ("numpy", "onnx", "onnxruntime", "protobuf"),
    "torch": ("numpy", "onnx", "onnxruntime", "onnxscript", "torch", "transformers"),
    "sklearn": ("numpy", "onnx", "onnxruntime", "scikit-learn", "skl2onnx"),
}

_PROBE_TIMEOUT_S = 60
_PROBE = """
import importlib.metadata as metadata, json, sys
versions = {"python": sys.version.split()[0]}
for name in sys.argv[1:]:
    try:
        versions[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
json.dump({"versions": versions, "prefixes": [sys.base_prefix, sys.base_exec_prefix, sys.prefix]}, sys.stdout)
"""


@dataclass(frozen=True)
class Toolchain:
    """A named set of libraries and the interpreter that has them."""

    name: str
    interpreter: Path = field(default_factory=lambda: Path(sys.executable))


@dataclass(frozen=True)
class Installation:
    """What an interpreter is: its versions, and the folders it and its libraries are installed in."""

    versions: dict[str, str]
    prefixes: tuple[Path, ...]


def versions(toolchain: Toolchain) -> dict[str, str]:
    """Return the installed versions by distribution name, 'python' among them; asked once per process.

    Raises ToolchainMissing when the interpreter does not run.
    """
    return dict(installation(toolchain.interpreter).versions)


def missing(toolchain: Toolchain) -> str | None:
    """Return what the toolchain lacks and how to mend it, or None when it is complete."""
    try:
        installed = versions(toolchain)
    except ToolchainMissing as error:
        return str(error)
    absent = [name for name in NEEDED.get(toolchain.name, ()) if name not in installed]
    if not absent:
        return None
    return (
        f"The {toolchain.name} toolchain lacks {', '.join(absent)} in {toolchain.interpreter}. "
        f"Run: make setup, or {toolchain.interpreter} -m pip install 'modelium[{toolchain.name}]'"
    )


@functools.cache
def installation(interpreter: Path) -> Installation:
    """Ask ``interpreter`` what it is; once per process. Raises ToolchainMissing when it does not run."""
    try:
        done = subprocess.run(
            [interpreter, "-P", "-s", "-c", _PROBE, *LIBRARIES],
            capture_output=True,
            check=True,
            timeout=_PROBE_TIMEOUT_S,
            env={"PATH": "/usr/bin:/bin"},
        )
        answer = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise ToolchainMissing(
            f"The interpreter {interpreter} does not run ({error}).",
            hint="Name one that does in the settings, or run: make setup",
        ) from error
    return Installation(answer["versions"], tuple(dict.fromkeys(Path(p) for p in answer["prefixes"])))
