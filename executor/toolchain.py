"""Toolchains: which interpreter runs a step, what is installed there, and where it lives on disk."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from schemas.errors import ToolchainMissing

NEEDED: dict[str, tuple[str, ...]] = {
    "onnx": ("numpy", "onnx", "onnxruntime", "protobuf"),
    "torch": ("numpy", "onnx", "onnxruntime", "onnxscript", "torch", "transformers"),
    "sklearn": ("numpy", "onnx", "onnxruntime", "scikit-learn", "skl2onnx"),
    "boosting": (
        "catboost",
        "lightgbm",
        "numpy",
        "onnx",
        "onnxruntime",
        "scikit-learn",
        "skl2onnx",
        "skops",
        "xgboost-cpu",
    ),
    "tensorflow": ("h5py", "keras", "numpy", "onnx", "onnxruntime", "protobuf", "tensorflow-cpu", "tf2onnx"),
    "openvino": ("nncf", "numpy", "onnx", "onnxruntime", "openvino"),
    "tensorrt_rtx": ("numpy", "onnx", "onnxruntime", "tensorrt_rtx_cu12"),
    "tensorrt": ("numpy", "onnx", "tensorrt"),
}
"""Toolchain to the distributions it must have. Their versions are part of what a step's output depends on."""

DEFAULT = frozenset({"onnx", "torch", "sklearn"})
"""Those that the ordinary set-up installs beside the control plane; the others have environments of their own."""

_PROBE_TIMEOUT_S = 60
PROBE = """
import importlib.metadata as metadata, json, sys
versions = {"python": sys.version.split()[0]}
for name in sys.argv[1:]:
    try:
        versions[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
prefixes = [sys.base_prefix, sys.base_exec_prefix, sys.prefix]
json.dump({"versions": versions, "prefixes": prefixes, "path": sys.path}, sys.stdout)
"""


@dataclass(frozen=True)
class Installation:
    """What an interpreter is: its versions, and the folders it and its libraries are installed in."""

    versions: dict[str, str]
    prefixes: tuple[Path, ...]


@dataclass(frozen=True)
class Toolchain:
    """A named set of libraries and the interpreter that has them.

    ``carried`` is what is installed there when the interpreter is not on this machine but in the sandbox's image.
    """

    name: str
    interpreter: Path = field(default_factory=lambda: Path(sys.executable))
    carried: Installation | None = field(default=None, compare=False)


def versions(toolchain: Toolchain) -> dict[str, str]:
    """Return the installed versions by distribution name, 'python' among them; asked once per process.

    Raises ToolchainMissing when the interpreter does not run.
    """
    return dict((toolchain.carried or installation(toolchain.interpreter)).versions)


def missing(toolchain: Toolchain) -> str | None:
    """Return the sentence that says what the toolchain lacks, or None when it is complete."""
    try:
        installed = versions(toolchain)
    except ToolchainMissing as error:
        return str(error.args[0])
    absent = [name for name in NEEDED.get(toolchain.name, ()) if name not in installed]
    if not absent:
        return None
    if toolchain.name not in DEFAULT and toolchain.interpreter == Path(sys.executable):
        return f"The {toolchain.name} toolchain ({', '.join(NEEDED[toolchain.name])}) is not installed."
    return f"The {toolchain.name} toolchain lacks {', '.join(absent)} in {toolchain.interpreter}."


@functools.cache
def versions_here(name: str) -> dict[str, str]:
    """Return the versions that this process's own interpreter has of what toolchain ``name`` needs."""
    found = {}
    for distribution in NEEDED.get(name, ()):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[distribution] = metadata.version(distribution)
    return found


def mending(toolchain: Toolchain) -> str:
    """Return how to install what :func:`missing` misses."""
    if toolchain.name in DEFAULT:
        return f"Run: make setup, or: {toolchain.interpreter} -m pip install 'modelium[{toolchain.name}]'"
    return (
        f"Run: make setup TOOLCHAINS={toolchain.name}, then `modelium retry`; or name an interpreter that has it in "
        "MODELIUM_TOOLCHAINS."
    )


def beside(prefix: Path, name: str) -> Path | None:
    """Return the interpreter of a toolchain that the set-up made beside the environment ``prefix``, if it did."""
    interpreter = prefix.parent / ".toolchains" / name / "bin" / "python"
    return interpreter if interpreter.exists() else None


def remember_in(folder: Path) -> None:
    """Keep what interpreters answer in ``folder``, a private one, for the next process to believe."""
    global _folder
    _folder = folder


_folder: Path | None = None


@functools.cache
def installation(interpreter: Path) -> Installation:
    """Say what ``interpreter`` is; it is asked once. Raises ToolchainMissing when it does not run."""
    kept = None
    if _folder is not None:
        name = hashlib.sha256(f"{interpreter}\0{PROBE}\0{NEEDED}".encode()).hexdigest()
        kept = _folder / f"interpreter-{name[:16]}.json"
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            document = json.loads(kept.read_text())
            if document["stamps"] == _stamps(document["stamps"]):
                return _installation(document["answer"])
    answer = _ask(interpreter)
    found = _installation(answer)
    if kept is not None:
        looked_at = [str(interpreter), *(str(prefix / "pyvenv.cfg") for prefix in found.prefixes), *answer["path"]]
        aside = kept.with_suffix(f".{os.getpid()}")
        with contextlib.suppress(OSError):
            aside.write_text(json.dumps({"answer": answer, "stamps": _stamps(looked_at)}))
            aside.replace(kept)
    return found


def _installation(answer: dict[str, Any]) -> Installation:
    return Installation(answer["versions"], tuple(dict.fromkeys(Path(p) for p in answer["prefixes"])))


def _stamps(paths: Iterable[str]) -> dict[str, list[int] | None]:
    """Return what changes when something is installed: inode and time of the interpreter and of its library folders."""
    found: dict[str, list[int] | None] = {}
    for path in paths:
        try:
            status = Path(path).stat()
            found[path] = [status.st_ino, status.st_mtime_ns, status.st_size]
        except OSError:
            found[path] = None
    return found


def _ask(interpreter: Path) -> dict[str, Any]:
    libraries = sorted({name for names in NEEDED.values() for name in names})
    try:
        done = subprocess.run(
            [interpreter, "-P", "-s", "-c", PROBE, *libraries],
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
    assert isinstance(answer, dict)
    return answer
