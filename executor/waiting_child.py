"""Runs inside the sandbox: ``python -P -m executor.waiting_child TOOLCHAIN`` imports, waits for a line, becomes a step.

The line is its command line, as JSON. Nothing of a step is here before; the end of the input is the end of it all.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from executor import landlock, preloading, program
from executor.child import writable
from executor.sandbox import PROGRESS_VARIABLE
from executor.warm_protocol import BEGUN, IDLE

_ROOT = Path("/step")


def main() -> None:
    """Import while nobody asks, then run what is asked for."""
    # Threads that a library starts while it is imported have given up what the step gives up.
    landlock.restrict(path for path in writable(_ROOT) if path.exists())
    progress = int(os.environ[PROGRESS_VARIABLE])
    with _silence():
        if _import(sys.argv[1]):
            os.write(progress, IDLE)
        line = _line()
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.write(progress, BEGUN)
    program.run(json.loads(line))


def _import(toolchain: str) -> bool:
    """Import what steps of ``toolchain`` need, and then what they may; False when one is there before that is done."""
    for load in _loads(toolchain):
        if select.select([0], [], [], 0)[0]:
            return False
        load()
    return True


def _loads(toolchain: str) -> Iterator[Callable[[], object]]:
    for name in preloading.first(toolchain):
        yield lambda name=name: preloading.preload(name)  # type: ignore[misc]
    yield from preloading.later(toolchain)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep what imports say out of the step's log."""
    kept = [os.dup(1), os.dup(2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(nowhere, number)
    yield
    sys.stdout.flush()
    sys.stderr.flush()
    for number, own in zip((1, 2), kept, strict=True):
        os.dup2(own, number)
        os.close(own)
    os.close(nowhere)


def _line() -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(0, 1 << 16)
        if not part:
            os._exit(0)
        line += part
    return line


if __name__ == "__main__":
    main()
