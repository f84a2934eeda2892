"""Runner: a loaded model that maps named arrays to named arrays, whatever its runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from converters.arrays import Array, Arrays
from converters.domain import Domain
from converters.onnx_runner import OnnxRunner
from schemas.catalog import TOOLCHAIN_OF_FORMAT
from schemas.descriptor import Format, ModelDescriptor, TensorSpec
from schemas.errors import ModeliumError, Unsupported
from schemas.step_io import StepContext

__all__ = ["OnnxRunner", "Runner", "descriptor_of", "load_original"]


class Runner(Protocol):
    """A model in its own runtime, ready to run; lives as long as the process."""

    @property
    def runtime(self) -> str:
        """Return torch, onnxruntime or sklearn."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Return what it takes; empty while nobody knows, see the ``probe`` step."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Return what it gives; empty while nobody knows."""

    @property
    def domains(self) -> Mapping[str, Domain]:
        """Return the values that inputs take, for those where the model tells; costs a walk over the model."""

    def run(self, feeds: Mapping[str, Array]) -> Arrays:
        """Run once. Outputs are copies. Raises ModelFailed when the model refuses these inputs."""

    def bind(self, feeds: Mapping[str, Array]) -> Callable[[], object]:
        """Return a call that runs ``feeds`` once, with all conversions already done; what it returns is not kept."""


def descriptor_of(context: StepContext) -> ModelDescriptor:
    """Return the request's descriptor. A step without one is our fault."""
    if context.request.descriptor is None:
        raise ModeliumError(f"Step {context.request.kind} was asked without a descriptor.")
    return context.request.descriptor


def load_original(context: StepContext) -> Runner:
    """Load input ``model`` in the runtime of its own format.

    The runner's inputs and outputs are the descriptor's where it has them. Raises ModelFailed when the model does not
    load and Unsupported for a format that no toolchain runs.
    """
    descriptor = descriptor_of(context)
    toolchain = TOOLCHAIN_OF_FORMAT.get(descriptor.format)
    if toolchain == "torch":
        from converters.torch_runner import TorchRunner

        return TorchRunner.load(context)
    if descriptor.format is Format.SKLEARN:
        from converters.sklearn_runner import SklearnRunner

        return SklearnRunner.load(context)
    if descriptor.format is Format.ONNX:
        from converters import onnx_file

        return OnnxRunner(onnx_file.find(context.input("model"), descriptor), threads=context.request.threads)
    raise Unsupported(
        f"Models of format {descriptor.format} cannot be run here.", hint="Export the model to ONNX and drop that."
    )
