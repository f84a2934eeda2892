"""Runs steps in sandboxes: nothing of a model is parsed or executed anywhere else.

The names below are imported on first use. Inside the sandbox only ``executor.child`` runs, in toolchains that have
nothing of what the host's side needs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from executor.execution import prepare, run, sweep
    from executor.find import find_sandbox, make_sandbox
    from executor.step_spec import StepOutput, StepSpec

__all__ = ["StepOutput", "StepSpec", "find_sandbox", "make_sandbox", "prepare", "run", "sweep"]

_OWNERS = {
    "StepOutput": "executor.step_spec",
    "StepSpec": "executor.step_spec",
    "find_sandbox": "executor.find",
    "make_sandbox": "executor.find",
    "prepare": "executor.execution",
    "run": "executor.execution",
    "sweep": "executor.execution",
}


def __getattr__(name: str) -> object:
    if name not in _OWNERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_OWNERS[name]), name)
