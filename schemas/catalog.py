"""Every step kind: what it takes and gives, its typed options, and the function that runs it in the child.

Adding a converter is one entry here, one file in ``converters/`` and one test file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, ValidationError

from schemas.descriptor import AnalysisReport, Format, ModelDescriptor, ProbeReport
from schemas.document import Document
from schemas.errors import InvalidDocument, Unsupported
from schemas.evidence import ConversionReport, MeasureReport, ParityReport, ReferenceReport, TryReport
from schemas.target import Precision, Runtime

Role = Literal["analysis", "conversion", "proof"]

TRACED_OPSET = 17
"""Opset of the TorchScript-based exporter: the newest it writes completely."""
DYNAMO_OPSET = 20
"""Opset of the torch.export-based exporter."""


class AnalyzeOptions(Document):
    """Options of ``analyze``."""

    allowed_globals: tuple[str, ...] = Field(
        default=(),
        max_length=200,
        description="module.name pickle globals the operator allows beside the built-in list",
    )


class ProbeOptions(Document):
    """Options of ``probe``."""

    max_attempts: int = Field(default=60, ge=1, le=500, description="Input shapes tried before asking a person")


class ReferenceOptions(Document):
    """Options of ``reference``."""

    batch_sizes: tuple[int, ...] = Field(default=(1, 2, 3, 8), min_length=1, max_length=8)
    max_samples: int = Field(default=512, ge=1, le=10_000, description="Rows of real samples that are compared")


class TorchExportOptions(Document):
    """Options of the converters that export a torch module."""

    exporter: Literal["dynamo", "torchscript"] = "torchscript"
    opset: int = Field(default=TRACED_OPSET, ge=13, le=23)


class HuggingfaceExportOptions(TorchExportOptions):
    """Options of ``huggingface_onnx``."""

    attention: Literal["sdpa", "eager"] = "sdpa"


class SklearnExportOptions(Document):
    """Options of ``sklearn_onnx``."""

    opset: int = Field(default=17, ge=13, le=21)


class OnnxOptimizeOptions(Document):
    """Options of ``onnx_optimize``; no level above extended, which would tie the graph to a CPU."""

    level: Literal["basic", "extended"] = "extended"
    min_opset: int = Field(default=17, ge=13, le=21, description="Older graphs are raised to it first")


class OnnxInt8Options(Document):
    """Options of ``onnx_int8``: dynamic quantisation of weights."""

    per_channel: bool = True
    weight_type: Literal["int8", "uint8"] = "int8"
    reduce_range: bool = Field(default=False, description="7-bit weights, for CPUs without VNNI")


class ParityOptions(Document):
    """Options of ``parity``. Set by code, never by a plan."""

    precision: Precision
    format: Format = Field(default=Format.ONNX, description="Format of the candidate")


class MeasureOptions(Document):
    """Options of ``measure``. Set by code, never by a plan."""

    batch_sizes: tuple[int, ...] = Field(default=(1, 8), min_length=1, max_length=8)
    formats: dict[str, Format] = Field(
        default_factory=dict, description="Candidate id to its format; those not named are ONNX"
    )
    rounds: int = Field(default=15, ge=3, le=200)
    round_ms: float = Field(default=60, gt=0, le=10_000, description="Least time of a contender's turn")
    budget_s: float = Field(default=60, gt=0, le=3600, description="Rounds stop early when it is spent (never below 5)")


class TryOptions(Document):
    """Options of ``try_model``."""

    rows: int = Field(default=1, ge=1, le=64)


@dataclass(frozen=True)
class StepKind:
    """One catalogue entry. ``toolchains`` are those it can run in; ``function`` is ``module:function``."""

    kind: str
    summary: str
    role: Role
    function: str
    toolchains: tuple[str, ...]
    options: type[Document]
    report: type[Document]
    takes: tuple[Format, ...] = ()
    gives: Format | None = None
    precision: Precision | None = None
    """Precision of what it gives, when it changes it."""


_SERVED = (
    Format.TORCHSCRIPT,
    Format.EXPORTED_PROGRAM,
    Format.TORCH_STATE_DICT,
    Format.SAFETENSORS,
    Format.HUGGINGFACE,
    Format.ONNX,
    Format.SKLEARN,
)
_RUNTIMES = ("torch", "onnx", "sklearn")

CATALOG: dict[str, StepKind] = {
    entry.kind: entry
    for entry in (
        StepKind("analyze", "Tell the format, read headers, scan for danger", "analysis", "analyzer:analyze",
                 ("onnx",), AnalyzeOptions, AnalysisReport),
        StepKind("probe", "Run the model to complete its descriptor", "analysis", "converters.probe:probe",
                 _RUNTIMES, ProbeOptions, ProbeReport, takes=_SERVED),
        StepKind("reference", "Compute the original's outputs before any export", "proof",
                 "converters.reference:reference", _RUNTIMES, ReferenceOptions, ReferenceReport, takes=_SERVED),
        StepKind("torchscript_onnx", "Export TorchScript to ONNX", "conversion",
                 "converters.torchscript_onnx:convert", ("torch",), TorchExportOptions, ConversionReport,
                 takes=(Format.TORCHSCRIPT,), gives=Format.ONNX),
        StepKind("exported_program_onnx", "Export an ExportedProgram to ONNX", "conversion",
                 "converters.exported_program_onnx:convert", ("torch",), TorchExportOptions, ConversionReport,
                 takes=(Format.EXPORTED_PROGRAM,), gives=Format.ONNX),
        StepKind("huggingface_onnx", "Export a Hugging Face folder to ONNX", "conversion",
                 "converters.huggingface_onnx:convert", ("torch",), HuggingfaceExportOptions, ConversionReport,
                 takes=(Format.HUGGINGFACE,), gives=Format.ONNX),
        StepKind("module_onnx", "Build the sidecar's class, load the weights, export to ONNX", "conversion",
                 "converters.module_onnx:convert", ("torch",), TorchExportOptions, ConversionReport,
                 takes=(Format.TORCH_STATE_DICT, Format.SAFETENSORS), gives=Format.ONNX),
        StepKind("sklearn_onnx", "Convert a scikit-learn estimator or pipeline to ONNX", "conversion",
                 "converters.sklearn_onnx:convert", ("sklearn",), SklearnExportOptions, ConversionReport,
                 takes=(Format.SKLEARN,), gives=Format.ONNX),
        StepKind("onnx_optimize", "Raise the opset, fold and fuse the graph offline", "conversion",
                 "converters.onnx_optimize:convert", ("onnx",), OnnxOptimizeOptions, ConversionReport,
                 takes=(Format.ONNX,), gives=Format.ONNX),
        StepKind("onnx_int8", "Quantise weights to int8 per channel, activations at run time", "conversion",
                 "converters.onnx_int8:convert", ("onnx",), OnnxInt8Options, ConversionReport,
                 takes=(Format.ONNX,), gives=Format.ONNX, precision=Precision.INT8),
        StepKind("parity", "Compare a candidate with the original, output by output", "proof",
                 "converters.parity:parity", ("onnx",), ParityOptions, ParityReport, takes=(Format.ONNX,)),
        StepKind("measure", "Time original and candidates in turn", "proof", "converters.measure:measure",
                 _RUNTIMES, MeasureOptions, MeasureReport, takes=_SERVED),
        StepKind("try_model", "One sample inference with a deployed model", "proof", "converters.try_model:try_model",
                 ("onnx",), TryOptions, TryReport, takes=(Format.ONNX,)),
    )
}  # fmt: skip

TOOLCHAIN_OF_FORMAT: dict[Format, str] = {
    Format.TORCHSCRIPT: "torch",
    Format.EXPORTED_PROGRAM: "torch",
    Format.TORCH_STATE_DICT: "torch",
    Format.SAFETENSORS: "torch",
    Format.HUGGINGFACE: "torch",
    Format.TORCH_MODULE: "torch",
    Format.AOTINDUCTOR: "torch",
    Format.ONNX: "onnx",
    Format.SKLEARN: "sklearn",
    Format.SKOPS: "sklearn",
    Format.XGBOOST: "boosting",
    Format.LIGHTGBM: "boosting",
    Format.CATBOOST: "boosting",
    Format.KERAS: "tensorflow",
    Format.SAVED_MODEL: "tensorflow",
    Format.TFLITE: "tensorflow",
    Format.OPENVINO: "openvino",
    Format.TENSORRT: "tensorrt",
    Format.TENSORRT_RTX: "tensorrt_rtx",
}
"""The toolchain that runs a model of that format, original or candidate."""


def toolchain_of(descriptor: ModelDescriptor) -> str:
    """Return the toolchain that runs the original. Raises Unsupported where none does."""
    name = descriptor.toolchain or TOOLCHAIN_OF_FORMAT.get(descriptor.format)
    if name is None:
        raise Unsupported(
            f"No toolchain here runs models of format {descriptor.format.value}.",
            hint="Export the model to ONNX where it was trained and drop the .onnx file.",
        )
    return name


SERVED_IR, SERVED_OPSET = 10, 21
"""The newest ONNX file format and operator set that the target's onnxruntime (1.20, in Triton 24.12) loads."""

SERVED_FORMATS: dict[Runtime, frozenset[Format]] = {
    Runtime.TRITON: frozenset({Format.ONNX, Format.OPENVINO, Format.TORCHSCRIPT}),
    Runtime.TRITON_ONNXRUNTIME: frozenset({Format.ONNX}),
    Runtime.TRITON_OPENVINO: frozenset({Format.OPENVINO}),
    Runtime.TRITON_PYTORCH: frozenset({Format.TORCHSCRIPT}),
    Runtime.TRITON_TENSORRT: frozenset({Format.TENSORRT}),
    Runtime.TENSORRT_RTX: frozenset({Format.TENSORRT_RTX}),
    Runtime.VLLM: frozenset({Format.HUGGINGFACE}),
    Runtime.LLAMA_CPP: frozenset({Format.GGUF}),
}
"""Formats that a target's runtime serves as they are."""


def entry(kind: str) -> StepKind:
    """Return the catalogue entry of ``kind``. Raises InvalidDocument for a kind that is not catalogued."""
    if kind not in CATALOG:
        raise InvalidDocument(
            f"There is no step kind {kind!r}.", hint=f"The catalogue has: {', '.join(CATALOG)}.", pointer="/kind"
        )
    return CATALOG[kind]


def parse_options(kind: str, options: dict[str, Any]) -> Document:
    """Return ``options`` as the kind's own model. Raises InvalidDocument that names the pointer."""
    try:
        return entry(kind).options.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        pointer = "/options/" + "/".join(str(part) for part in first["loc"])
        raise InvalidDocument(f"Step {kind}: {pointer} {first['msg']}.", pointer=pointer) from None
