"""Runner: a loaded model that maps named arrays to named arrays, whatever its runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from converters.arrays import Array, Arrays
from converters.domain import Domain
from converters.onnx_runner import OnnxRunner
from schemas.catalog import TOOLCHAIN_OF_FORMAT
from schemas.descriptor import Format, ModelDescriptor, TensorSpec
from schemas.errors import ModeliumError, Unsupported
from schemas.step_io import StepContext

__all__ = ["OnnxRunner", "Runner", "descriptor_of", "load_candidate", "load_original"]


class Runner(Protocol):
    """A model in its own runtime, ready to run; lives as long as the process."""

    @property
    def runtime(self) -> str:
        """Return its name: torch, onnxruntime, sklearn, openvino ..."""

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
    match TOOLCHAIN_OF_FORMAT.get(descriptor.format):
        case "torch":
            from converters.torch_runner import TorchRunner

            return TorchRunner.load(context)
        case "sklearn":
            from converters.sklearn_runner import SklearnRunner

            return SklearnRunner.load(context)
        case "boosting":
            from converters.boosting_runner import BoostingRunner

            return BoostingRunner.load(context)
        case "tensorflow":
            from converters.tensorflow_runner import TensorflowRunner

            return TensorflowRunner.load(context)
        case "openvino":
            from converters.openvino_runner import OpenvinoRunner

            return OpenvinoRunner.load(context)
    if descriptor.format is Format.ONNX:
        from converters import onnx_file

        return OnnxRunner(onnx_file.find(context.input("model"), descriptor), threads=context.request.threads)
    return load_candidate(context.input("model"), descriptor.format, threads=context.request.threads)


def load_candidate(path: Path, format_: Format, *, threads: int) -> Runner:
    """Load what a converter wrote; its tensors have the original's names.

    Raises ModelFailed when it does not load and Unsupported for a format that cannot be run here.
    """
    match format_:
        case Format.ONNX:
            from converters import onnx_file

            return OnnxRunner(onnx_file.find(path), threads=threads)
        case Format.OPENVINO:
            from converters.openvino_runner import OpenvinoRunner

            return OpenvinoRunner(path, threads=threads)
        case Format.TORCHSCRIPT:
            from converters.torchscript_runner import TorchScriptRunner

            return TorchScriptRunner(path, threads=threads)
        case Format.TENSORRT_RTX:
            from converters import onnx_file

            # An engine runs on its GPU only: the very graph it was built from stands for it, and is called a proxy.
            return OnnxRunner(onnx_file.find(path / onnx_file.MODEL_FILE), threads=threads)
        case Format.AOTINDUCTOR:
            from converters.aotinductor_runner import AotInductorRunner

            return AotInductorRunner(path, threads=threads)
    raise Unsupported(
        f"Models of format {format_.value} cannot be run here.", hint="Export the model to ONNX and drop that."
    )
