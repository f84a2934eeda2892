"""Run OpenVINO IR on the CPU, with what Triton's openvino backend can be told and nothing more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from converters import openvino_file
from converters.arrays import Array, Arrays, cast
from converters.domain import Domain
from converters.model_errors import RAISED_BY_MODELS
from schemas.descriptor import TensorSpec
from schemas.errors import ModelFailed
from schemas.step_io import StepContext

if TYPE_CHECKING:
    import openvino

_KEEPS_VALUES = frozenset({"Convert", "Reshape", "Unsqueeze", "Squeeze", "Transpose"})


class OpenvinoRunner:
    """One compiled model on the CPU: one stream, the latency hint, never more than ``threads`` threads.

    The precision of the arithmetic is what the plugin chooses unless the model says bf16, because Triton's backend can
    be told no other: on a CPU with AMX the plugin computes float32 models in bfloat16. ``exact`` asks for float32; it
    is for what an original's answers are, not for what is served.
    """

    runtime = "openvino"

    def __init__(self, path: Path, *, threads: int = 1, exact: bool = False) -> None:
        """Load ``path``, an .xml or its folder. Raises ModelFailed when it does not load or compile."""
        self._begin(openvino_file.read(openvino_file.find(path)), threads, exact)

    @classmethod
    def load(cls, context: StepContext) -> OpenvinoRunner:
        """Load input ``model``, an original: in float32 where its own answers are asked for, else as it is served."""
        path = openvino_file.find(context.input("model"), context.request.descriptor)
        return cls(path, threads=context.request.threads, exact=context.request.kind in ("probe", "reference"))

    @classmethod
    def of(cls, model: openvino.Model, *, threads: int = 1, exact: bool = False) -> OpenvinoRunner:
        """Return a runner of a model in memory. Raises ModelFailed when it does not compile."""
        runner = cls.__new__(cls)
        runner._begin(model, threads, exact)
        return runner

    def _begin(self, model: openvino.Model, threads: int, exact: bool) -> None:
        self.inputs, self.outputs = openvino_file.model_specs(model)
        self._model = model
        properties: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
        }
        if exact or openvino_file.hint(model) is not None:
            properties["INFERENCE_PRECISION_HINT"] = "f32" if exact else openvino_file.hint(model)
        try:
            # A core of its own: what is set on it is not another model's.
            self._compiled = openvino_file.core().compile_model(model, "CPU", properties)
        except RAISED_BY_MODELS as error:
            raise ModelFailed(
                f"OpenVINO cannot compile the model: {openvino_file.reason(error)}.",
                hint="It may use an operator that OpenVINO's CPU runtime has not; onnxruntime may run it.",
            ) from error
        self._request = self._compiled.create_infer_request()

    @property
    def domains(self) -> Mapping[str, Domain]:
        """Bounds of integer inputs that index an embedding."""
        return gather_limits(self._model)

    @property
    def inference_precision(self) -> str:
        """What the plugin computes in on this machine: f32, bf16, f16 or dynamic."""
        return str(self._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())

    def run(self, feeds: Mapping[str, Array]) -> Arrays:
        """Return the outputs by name. Raises ModelFailed when the model refuses these inputs."""
        call = self._call(self._request, feeds)  # an output may be an input's own memory, which it holds
        call()
        return {
            spec.name: self._kept(self._request.get_output_tensor(at), spec) for at, spec in enumerate(self.outputs)
        }

    def bind(self, feeds: Mapping[str, Array]) -> Callable[[], object]:
        """Return a call that runs ``feeds`` once and leaves the outputs in the runtime's own memory, for timing."""
        return self._call(self._compiled.create_infer_request(), feeds)

    def _call(self, request: Any, feeds: Mapping[str, Array]) -> Callable[[], object]:
        missing = [spec.name for spec in self.inputs if spec.name not in feeds]
        if missing:
            raise ModelFailed(f"The model takes an input {missing[0]!r} that was not given.", hint=self._signature())
        try:
            tensors = [_tensor(cast(feeds[spec.name], spec), spec) for spec in self.inputs]
            for at, tensor in enumerate(tensors):
                request.set_input_tensor(at, tensor)
        except RAISED_BY_MODELS as error:
            raise self._refusal(error) from error

        def call(held: object = tensors) -> object:
            # A tensor holds its array, but the request holds neither: what ``held`` names has to outlive the call.
            try:
                return request.infer(share_outputs=True)
            except RAISED_BY_MODELS as error:
                raise self._refusal(error) from error

        return call

    def _kept(self, tensor: Any, spec: TensorSpec) -> Array:
        array: Array = tensor.data
        if spec.dtype == "bfloat16":
            # numpy has no bfloat16: OpenVINO shows its bits as float16.
            return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        return array.astype(bool) if spec.dtype == "bool" else array.copy()

    def _refusal(self, error: BaseException) -> ModelFailed:
        return ModelFailed(f"OpenVINO could not run the model: {openvino_file.reason(error)}.", hint=self._signature())

    def _signature(self) -> str:
        takes = ", ".join(f"{spec.name}: {spec.dtype}{list(spec.shape)}" for spec in self.inputs)
        return f"It takes {takes}."[:1000]


def _tensor(array: Array, spec: TensorSpec) -> openvino.Tensor:
    import openvino

    array = np.ascontiguousarray(array).reshape(array.shape)
    if spec.dtype != "bfloat16":
        return openvino.Tensor(array, shared_memory=True)
    bits = array.astype(np.float32).view(np.uint32)
    # Round to nearest, ties to even; what is cut off are the lower 16 bits.
    bits = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    tensor = openvino.Tensor(openvino.Type.bf16, openvino.Shape(list(array.shape)))
    tensor.data.view(np.uint16)[...] = bits
    return tensor


def gather_limits(model: openvino.Model) -> dict[str, Domain]:
    """Return, for each integer input that indexes a stored table, how many rows the smallest such table has."""
    limits: dict[str, int] = {}
    for op in openvino_file.all_operators(model):
        if op.get_type_name() != "Gather":
            continue
        table, indices = op.input(0).get_source_output(), op.input(1).get_source_output()
        axis = op.input(2).get_source_output().get_node()
        if not _stored(table.get_node()) or axis.get_type_name() != "Constant" or int(axis.data.reshape(-1)[0]) != 0:
            continue
        while indices.get_node().get_type_name() in _KEEPS_VALUES:
            indices = indices.get_node().input(0).get_source_output()
        rows = table.get_partial_shape()[0]
        if indices.get_node().get_type_name() == "Parameter" and rows.is_static:
            name = openvino_file.name_of(indices)
            limits[name] = min(int(rows.get_length()), limits.get(name, int(rows.get_length())))
    return {name: Domain(limit=limit) for name, limit in limits.items()}


def _stored(node: Any) -> bool:
    """Whether ``node`` is a constant, or one that is unpacked from fewer bits."""
    while node.get_type_name() in ("Convert", "Multiply", "Subtract", "Reshape"):
        node = node.input(0).get_source_output().get_node()
    return bool(node.get_type_name() == "Constant")
