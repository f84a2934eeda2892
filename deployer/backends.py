"""Triton's backends: which one serves a format, what its files are called, and what it cannot serve."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from schemas.descriptor import DType, Format, TensorSpec
from schemas.errors import Unsupported

_ONNX_TYPES: frozenset[DType] = frozenset(
    {
        "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8",
        "uint64", "uint32", "uint16", "uint8", "bool", "string",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Backend:
    """What a Triton backend wants. Sources: the backends' own code and READMEs, at release 24.12.

    ``model_file`` and ``data_files`` are the names that the version's folder has to hold.
    """

    name: str
    """Value of config.pbtxt's ``backend``."""
    model_file: str
    platform: str = ""
    """Value of config.pbtxt's ``platform``, where the backend has one."""
    data_suffix: str | None = None
    """Suffix of the one file that belongs to the model file; None where files beside it keep their names."""
    alone: bool = False
    """Only the model file, and the one with ``data_suffix``, belong to a version."""
    dtypes: frozenset[DType] = _ONNX_TYPES
    cpu: bool = True
    gpu: bool = True
    batches_any_size: bool = True
    """Whether a batch of any size up to max_batch_size runs as it is."""
    parameters: frozenset[str] = frozenset()
    """Keys of config.pbtxt's ``parameters`` that may be set; never one that names a library to load."""
    kserve_format: tuple[str, str] = ("triton", "2")
    """modelFormat of KServe's kserve-tritonserver runtime: its own name where that has one, else triton."""
    by_position: bool = False
    """Whether tensors are found by ``NAME__<position>``, or by their order in config.pbtxt, instead of by name."""


BACKENDS: dict[Format, Backend] = {
    Format.ONNX: Backend("onnxruntime", "model.onnx", kserve_format=("onnx", "1")),
    Format.OPENVINO: Backend(
        "openvino",
        "model.xml",
        data_suffix=".bin",
        alone=True,
        # The backend's table of element types ends here.
        dtypes=_ONNX_TYPES - {"float64", "bfloat16", "string"},
        gpu=False,
        # With max_batch_size it reshapes the model to exactly that batch (ov::set_batch) and refuses or pads any other.
        batches_any_size=False,
        parameters=frozenset(
            {"INFERENCE_NUM_THREADS", "COMPILATION_NUM_THREADS", "HINT_BF16", "NUM_STREAMS", "PERFORMANCE_HINT"}
        ),
    ),
    Format.TORCHSCRIPT: Backend(
        "pytorch",
        "model.pt",
        platform="pytorch_libtorch",
        alone=True,
        # Strings travel as lists there, which no traced model takes.
        dtypes=frozenset({"float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"}),
        parameters=frozenset(
            {
                "INFERENCE_MODE", "DISABLE_OPTIMIZED_EXECUTION", "INTRA_OP_THREAD_COUNT", "INTER_OP_THREAD_COUNT",
                "ENABLE_WEIGHT_SHARING", "ENABLE_JIT_EXECUTOR", "ENABLE_JIT_PROFILING", "ENABLE_TENSOR_FUSER",
            }
        ),
        kserve_format=("pytorch", "1"),
        by_position=True,
    ),
    Format.TENSORRT: Backend(
        "tensorrt",
        "model.plan",
        platform="tensorrt_plan",
        alone=True,
        dtypes=frozenset({"float32", "float16", "bfloat16", "int64", "int32", "int8", "uint8", "bool"}),
        cpu=False,
        kserve_format=("tensorrt", "8"),
    ),
}  # fmt: skip
"""Formats that Triton's release 24.12 serves.

Compiled AOTInductor packages are not among them: ``platform: "torch_aoti"`` came into the pytorch backend in 2026.
"""

MODEL_FILES = frozenset(backend.model_file for backend in BACKENDS.values())


def backend_of(format_: Format) -> Backend:
    """Return the backend that serves ``format_``. Raises Unsupported for a format that Triton serves with none."""
    if format_ not in BACKENDS:
        raise Unsupported(
            f"Triton 24.12 has no backend that serves {format_.value}.",
            hint="Name another runtime in the target, or leave the choice to the measurement: 'runtime: triton'.",
        )
    return BACKENDS[format_]


def unservable(
    format_: Format, tensors: Iterable[TensorSpec], *, batched: bool, hardware: str = "cpu"
) -> tuple[str, str] | None:
    """Return why Triton cannot serve ``tensors`` from a model of ``format_`` and what helps; None when it can."""
    if format_ not in BACKENDS:
        return f"Triton 24.12 has no backend that serves {format_.value}.", "Name another runtime in the target."
    backend = BACKENDS[format_]
    if not (backend.gpu if hardware == "gpu" else backend.cpu):
        return (
            f"Triton's {backend.name} backend does not run on a {hardware.upper()}.",
            "Name another runtime in the target.",
        )
    for tensor in tensors:
        if tensor.dtype not in backend.dtypes:
            return (
                f"Tensor {tensor.name!r} is {tensor.dtype}, which Triton's {backend.name} backend does not serve.",
                "Use the onnxruntime backend for it, or export the model with float32 or int64 there.",
            )
        empty = [dim for dim in tensor.shape if isinstance(dim, int) and dim <= 0]
        if empty:
            return (
                f"Tensor {tensor.name!r} has an axis of size {empty[0]}; Triton serves axes of 1 and more.",
                "Export the model without that input or output, or with its real size.",
            )
        if not batched and not tensor.shape:
            return (
                f"Tensor {tensor.name!r} is a single number without any axis, and Triton serves no such tensor.",
                "Export the model with an axis of size 1 around it, or without it.",
            )
    return None
