"""ModelDescriptor: what is known about an artifact, and how each fact is known."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import Field

from schemas.document import Document
from schemas.errors import ErrorDocument


class Format(StrEnum):
    """What a model file is, told by its content."""

    TORCHSCRIPT = "torchscript"
    EXPORTED_PROGRAM = "exported_program"
    TORCH_MODULE = "torch_module"
    TORCH_STATE_DICT = "torch_state_dict"
    SAFETENSORS = "safetensors"
    HUGGINGFACE = "huggingface"
    ONNX = "onnx"
    SKLEARN = "sklearn"
    KERAS = "keras"
    SAVED_MODEL = "saved_model"
    TFLITE = "tflite"
    GGUF = "gguf"
    XGBOOST = "xgboost"
    LIGHTGBM = "lightgbm"
    CATBOOST = "catboost"
    SKOPS = "skops"
    OPENVINO = "openvino"
    AOTINDUCTOR = "aotinductor"
    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt_rtx"
    JAX_EXPORT = "jax_export"
    PICKLE = "pickle"
    NUMPY = "numpy"
    ARCHIVE = "archive"
    TEXT = "text"
    EMPTY = "empty"
    UNKNOWN = "unknown"


class KnownBy(StrEnum):
    """How a fact is known, the surest first."""

    HEADER = "header"
    PROBE = "probe"
    SIDECAR = "sidecar"
    GUESS = "guess"


DType = Literal[
    "float64", "float32", "float16", "bfloat16",
    "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool", "string",
]  # fmt: skip

Dim = int | str
"""An axis: a fixed size (>= 0), or the name of a dynamic axis such as ``batch`` or ``sequence``."""

BATCH_AXIS = "batch"
"""The name of a leading dynamic axis over which rows are independent."""


class TensorSpec(Document):
    """One input or output. ``shape`` holds ints for fixed axes and names for dynamic ones; () is a scalar."""

    name: str = Field(max_length=256)
    dtype: DType
    shape: tuple[Dim, ...] = Field(max_length=16)
    known_by: KnownBy


class Severity(StrEnum):
    """What a finding means for the job: ``info`` nothing, ``unknown`` needs_input, ``danger`` quarantined."""

    INFO = "info"
    UNKNOWN = "unknown"
    DANGER = "danger"


class SecurityFinding(Document):
    """One thing the scan saw."""

    code: str = Field(max_length=64, description="Stable kebab-case name of the rule, for example pickle-global")
    severity: Severity
    message: str = Field(max_length=1000, description="One sentence: the fact")
    where: str = Field(default="", max_length=500, description="Member, offset or line inside the artifact")
    subject: str = Field(default="", max_length=300, description="The pickle global, module or path concerned")


class ModelDescriptor(Document):
    """What is known about an artifact. A field that is None or empty is not known; ``known_by`` says how the rest is.

    ``known_by`` maps field names of this document to how the fact was found; tensors carry their own.
    """

    schema_version: Literal[1] = 1
    artifact_sha256: str
    format: Format
    size_bytes: int = Field(ge=0)
    framework: str | None = Field(default=None, description="pytorch, onnx, scikit-learn, ...")
    framework_version: str | None = None
    producer: str | None = None
    architecture: str | None = Field(default=None, description="Class or architecture name, for example BertModel")
    task: str | None = Field(default=None, description="Hugging Face's task names, for example feature-extraction")
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    example_axes: dict[str, int] = Field(
        default_factory=dict, description="Dynamic axis name to a size that was seen to run; exporters trace with it"
    )
    types_in_file: dict[str, str] = Field(
        default_factory=dict,
        max_length=1000,
        description="Tensor name to its type in an ONNX file that is served otherwise, such as sequence, float8_e5m2",
    )
    opset: int | None = None
    operators: dict[str, int] = Field(default_factory=dict, description="Operator name to count")
    parameter_count: int | None = Field(default=None, ge=0)
    parameter_bytes: int | None = Field(default=None, ge=0)
    matrix_bytes: int | None = Field(
        default=None, ge=0, description="Part of parameter_bytes that matrix products (MatMul, Gemm) multiply by"
    )
    parameter_dtypes: dict[str, int] = Field(default_factory=dict, description="dtype to number of parameters")
    flops: int | None = Field(default=None, ge=0, description="Floating-point operations for one row")
    memory_bytes: int | None = Field(default=None, ge=0, description="Estimated peak memory of running one row")
    tokenizer: str | None = None
    context_length: int | None = Field(default=None, ge=0, description="Tokens that a language model reads at most")
    quantisation: str | None = Field(default=None, max_length=64, description="Of a GGUF file, such as Q4_K_M")
    license: str | None = None
    labels: tuple[str, ...] = Field(default=(), max_length=100_000)
    entry: str | None = Field(default=None, description="Path of the model file inside a folder artifact")
    toolchain: str | None = Field(
        default=None, max_length=64, description="Toolchain that runs it, where that is not its format's usual one"
    )
    files: tuple[str, ...] = Field(default=(), max_length=1000, description="Members worth naming")
    pickle_globals: tuple[str, ...] = Field(
        default=(), max_length=1000, description="module.name of all that loading a whole pickled module asks for"
    )
    findings: tuple[SecurityFinding, ...] = Field(default=(), max_length=1000)
    known_by: dict[str, KnownBy] = Field(default_factory=dict)
    notes: tuple[str, ...] = Field(default=(), max_length=100, description="Sentences a person should read")


class AnalysisReport(Document):
    """What the ``analyze`` step returns.

    ``refusal`` is set when the descriptor is all that can be done for this artifact: code ``unsupported`` or
    ``model_failed`` ends the job ``failed``, ``needs_input`` and ``quarantined`` end it so; its message is the
    job's reason.
    """

    descriptor: ModelDescriptor
    refusal: ErrorDocument | None = None


class ProbeReport(Document):
    """What the ``probe`` step returns: the descriptor completed by running the model in the sandbox."""

    descriptor: ModelDescriptor
    tried: tuple[str, ...] = Field(default=(), description="What was tried, in order, for the log and the report")


class UnpackReport(Document):
    """What the ``unpack`` step returns; its output ``model`` is the model file or folder that was in the archive."""

    layers: tuple[str, ...] = Field(max_length=8, description="What was unpacked, from the outside in: tar, zip, gzip")
    files: tuple[str, ...] = Field(default=(), max_length=1000, description="Members that were written, the first ones")
    file_count: int = Field(ge=0)
    size_bytes: int = Field(ge=0)
    skipped: int = Field(default=0, ge=0, description="Members left out: what desktops and version control leave")
    sidecar: str | None = Field(default=None, description="Path of a sidecar inside the unpacked folder")
    notes: tuple[str, ...] = Field(default=(), max_length=50)
