"""Findings on a plan, and the verdict over its contenders: pure code, decided by evidence.

``check`` never raises for a plan, however mangled: what is wrong with it is a finding with a JSON pointer.
"""

from validator.checks import check
from validator.machine import MachineBounds

__all__ = ["MachineBounds", "check"]
