"""Runs inside the sandbox: does in a process that waited what a new interpreter does with its command line."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence


def run(argv: Sequence[str]) -> None:
    """Do what the interpreter does with ``-m MODULE ...`` or ``-c CODE ...``."""
    at = next(index for index, word in enumerate(argv) if word in ("-m", "-c"))
    what, rest = argv[at + 1], argv[at + 2 :]
    sys.argv = [argv[at], *rest]
    if argv[at] == "-m":
        sys.modules.pop(what, None)
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})
