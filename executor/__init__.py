"""Runs steps in sandboxes: nothing of a model is parsed or executed anywhere else."""

from executor.find import find_sandbox
from executor.run import run, sweep
from executor.step_spec import StepOutput, StepSpec

__all__ = ["StepOutput", "StepSpec", "find_sandbox", "run", "sweep"]
