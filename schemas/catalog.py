"""Every step kind: what it takes and gives, its typed options, and the function that runs it in the child.

Adding a converter is one entry here, one file in ``converters/`` and one test file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from schemas.descriptor import AnalysisReport, Format, ModelDescriptor, ProbeReport, UnpackReport
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


class UnpackOptions(Document):
    """Options of ``unpack``: what an archive may unpack to."""

    max_bytes: int = Field(default=16 << 30, ge=1, le=1 << 44, description="All files together; never above the disk's")
    max_files: int = Field(default=20_000, ge=1, le=100_000)
    max_depth: int = Field(default=16, ge=1, le=32, description="Folders below one another")
    max_ratio: int = Field(default=300, ge=2, le=10_000, description="Unpacked to packed bytes, from 128 MiB on")


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

    attention: Literal["sdpa", "eager", "fused"] = Field(
        default="sdpa", description="'fused' writes one onnxruntime operator per attention, with the dynamo exporter"
    )


class TorchscriptOptions(Document):
    """Options of ``torch_torchscript``."""

    freeze: bool = Field(default=True, description="Weights become constants of the graph, and batch norms fold")


class AotInductorOptions(Document):
    """Options of ``torch_aotinductor``."""

    freeze: bool = Field(default=True, description="Weights are folded and packed into the package")


class TensorrtRtxOptions(Document):
    """Options of ``onnx_tensorrt_rtx``."""

    sms: tuple[Annotated[str, Field(pattern=r"^sm_[0-9]{2,3}$")], ...] = Field(
        default=(), max_length=8, description="Architectures to build for; the target's where none is named"
    )
    most: dict[str, Annotated[int, Field(ge=1, le=1 << 20)]] = Field(
        default_factory=dict, description="Axis to the largest size it takes, where more than was seen is wanted"
    )


class TensorrtOptions(Document):
    """Options of ``onnx_tensorrt``."""

    precision: Precision = Field(
        default=Precision.FP32, description="Types the builder may choose; int8 and fp8 need a quantised graph"
    )
    most: dict[str, Annotated[int, Field(ge=1, le=1 << 20)]] = Field(
        default_factory=dict, description="Axis to the largest size the plan takes, where more is wanted than was seen"
    )
    workspace_bytes: int = Field(default=4 << 30, ge=1 << 20, le=1 << 40)


class SklearnExportOptions(Document):
    """Options of ``sklearn_onnx``."""

    opset: int = Field(default=17, ge=13, le=21)


class BoostingExportOptions(Document):
    """Options of ``boosting_onnx``."""

    opset: int = Field(default=17, ge=13, le=21)


class TensorflowExportOptions(Document):
    """Options of ``savedmodel_onnx`` and ``tflite_onnx``; tf2onnx writes no opset above 18."""

    opset: int = Field(default=17, ge=13, le=18)


class KerasExportOptions(TensorflowExportOptions):
    """Options of ``keras_onnx``."""

    through: Literal["graph", "saved_model"] = Field(
        default="graph", description="'saved_model' saves the traced model and loads it again before it is converted"
    )


class OnnxOptimizeOptions(Document):
    """Options of ``onnx_optimize``; no level above extended, which would tie the graph to a CPU."""

    level: Literal["basic", "extended"] = "extended"
    min_opset: int = Field(default=17, ge=13, le=21, description="Older graphs are raised to it first")


class QuantizationSearchOptions(Document):
    """Options of converters that search for the nodes that may not be quantised."""

    search_trials: int = Field(default=6, ge=1, le=50, description="Models built at most; 1 is no search")
    search_budget_s: float = Field(default=60, ge=0, le=3600, description="No new model is built when it is spent")


class OnnxInt8Options(QuantizationSearchOptions):
    """Options of ``onnx_int8``: dynamic quantisation of weights."""

    per_channel: bool = True
    weight_type: Literal["int8", "uint8"] = "int8"
    reduce_range: bool = Field(default=False, description="7-bit weights, for CPUs without VNNI")


class OnnxInt8StaticOptions(QuantizationSearchOptions):
    """Options of ``onnx_int8_static``: weights and activations, calibrated on the reference's inputs."""

    method: Literal["minmax", "entropy", "percentile"] = "minmax"
    percentile: float = Field(default=99.999, ge=90, le=100, description="Share of values inside the range, in percent")
    per_channel: bool = True
    activation_type: Literal["uint8", "int8"] = Field(
        default="uint8", description="int8 makes convolutions slow on x86 CPUs"
    )
    reduce_range: bool = Field(default=False, description="7-bit weights, for CPUs without VNNI")
    max_samples: int = Field(default=128, ge=1, le=1000, description="Rows that activations are calibrated on")


class OnnxFp16Options(Document):
    """Options of ``onnx_fp16``; inputs and outputs stay float32."""

    keep_float32: tuple[str, ...] = Field(
        default=(), max_length=50, description="Operators to leave in float32, beside those that have no float16"
    )


class OnnxWeightsOptions(Document):
    """Options of ``onnx_int4_weights`` and ``onnx_int8_weights``: weights in blocks; activations stay float32."""

    block_size: Literal[16, 32, 64, 128, 256] = Field(default=32, description="Weights that share a scale")
    symmetric: bool = False
    accuracy_level: Literal[0, 1, 4] = Field(
        default=4, description="How the multiplication runs: 4 in int8, 1 in float32, 0 as the runtime likes"
    )


class OnnxOpenvinoOptions(Document):
    """Options of ``onnx_openvino``."""

    compress_to_fp16: bool = Field(default=False, description="Store weights in float16; half the size, no speed")


class OpenvinoHintOptions(Document):
    """Options of ``openvino_bf16``: none."""


class OpenvinoInt8Options(QuantizationSearchOptions):
    """Options of ``openvino_int8``: post-training quantisation, calibrated on the reference's inputs."""

    preset: Literal["performance", "mixed"] = Field(
        default="performance", description="Mixed: ranges that need not be symmetric; transformers always have them"
    )
    model_type: Literal["auto", "transformer", "other"] = "auto"
    smooth_quant_alpha: float = Field(
        default=0.8, ge=-1, le=1, description="Share of activations' outliers that moves into the weights; -1 is off"
    )
    fast_bias_correction: bool = True
    subset_size: int = Field(default=128, ge=1, le=1000, description="Inputs that activations are calibrated on")
    ignored: tuple[str, ...] = Field(default=(), max_length=200, description="Operators by name that stay in float")


class OpenvinoWeightsOptions(Document):
    """Options of ``openvino_weights``: int8 weights, one scale per channel; activations stay as they are."""

    symmetric: bool = False


class OpenvinoWeights4Options(Document):
    """Options of ``openvino_weights4``: int4 weights in groups; activations stay as they are."""

    symmetric: bool = False
    group_size: Literal[16, 32, 64, 128] = 64
    ratio: float = Field(default=0.8, ge=0.1, le=1, description="Share of weights in int4; the most sensitive are int8")


class ParityOptions(Document):
    """Options of ``parity``. Set by code, never by a plan."""

    precision: Precision
    format: Format = Field(default=Format.ONNX, description="Format of the candidate")
    original: bool = Field(default=False, description="The candidate is the dropped model itself")


class MeasureOptions(Document):
    """Options of ``measure``. Set by code, never by a plan."""

    batch_sizes: tuple[int, ...] = Field(default=(1, 8), min_length=1, max_length=8)
    deciding: tuple[int, ...] = Field(
        default=(), max_length=8, description="Batch sizes that the verdict compares; none: all of them"
    )
    formats: dict[str, Format] = Field(
        default_factory=dict, description="Candidate id to its format; those not named are ONNX"
    )
    rounds: int = Field(default=15, ge=3, le=200, description="Most rounds; they end once the order is clear")
    round_ms: float = Field(default=60, gt=0, le=10_000, description="Least time of a contender's turn")
    budget_s: float = Field(default=60, gt=0, le=3600, description="Rounds stop early when it is spent (never below 5)")


class TryOptions(Document):
    """Options of ``try_model``."""

    rows: int = Field(default=1, ge=1, le=64)
    format: Format = Field(default=Format.ONNX, description="Format of the deployed model")
    original: bool = Field(default=False, description="The deployed model is the dropped one itself")


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
    reads_target: bool = False
    """It gets the target, which then decides about its outputs: a search for what its tolerance allows does."""


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

_RUN = tuple(TOOLCHAIN_OF_FORMAT)
_RUNTIMES = tuple(dict.fromkeys(TOOLCHAIN_OF_FORMAT.values()))
_TORCH = (
    Format.TORCHSCRIPT,
    Format.EXPORTED_PROGRAM,
    Format.TORCH_STATE_DICT,
    Format.SAFETENSORS,
    Format.HUGGINGFACE,
    Format.TORCH_MODULE,
)
_CANDIDATES = (Format.ONNX, Format.OPENVINO, Format.TORCHSCRIPT, Format.AOTINDUCTOR, Format.TENSORRT_RTX)
"""Formats that ``converters.runners.load_candidate`` runs."""
_CANDIDATE_RUNTIMES = tuple(dict.fromkeys(TOOLCHAIN_OF_FORMAT[format_] for format_ in _CANDIDATES))

CATALOG: dict[str, StepKind] = {
    entry.kind: entry
    for entry in (
        StepKind("analyze", "Tell the format, read headers, scan for danger", "analysis", "analyzer:analyze",
                 ("onnx",), AnalyzeOptions, AnalysisReport),
        StepKind("unpack", "Unpack an archive's model into plain files", "analysis", "analyzer.unpack:unpack",
                 ("onnx",), UnpackOptions, UnpackReport, takes=(Format.ARCHIVE,)),
        StepKind("probe", "Run the model to complete its descriptor", "analysis", "converters.probe:probe",
                 _RUNTIMES, ProbeOptions, ProbeReport, takes=_RUN),
        StepKind("reference", "Compute the original's outputs before any export", "proof",
                 "converters.reference:reference", _RUNTIMES, ReferenceOptions, ReferenceReport, takes=_RUN),
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
                 takes=(Format.TORCH_STATE_DICT, Format.SAFETENSORS, Format.TORCH_MODULE), gives=Format.ONNX),
        StepKind("torch_torchscript", "Trace a torch model into TorchScript without Python", "conversion",
                 "converters.torch_torchscript:convert", ("torch",), TorchscriptOptions, ConversionReport,
                 takes=_TORCH, gives=Format.TORCHSCRIPT),
        StepKind("torch_aotinductor", "Compile a torch model to machine code of this CPU", "conversion",
                 "converters.torch_aotinductor:convert", ("torch",), AotInductorOptions, ConversionReport,
                 takes=_TORCH, gives=Format.AOTINDUCTOR),
        StepKind("sklearn_onnx", "Convert a scikit-learn estimator or pipeline to ONNX", "conversion",
                 "converters.sklearn_onnx:convert", ("sklearn", "boosting"), SklearnExportOptions, ConversionReport,
                 takes=(Format.SKLEARN, Format.SKOPS), gives=Format.ONNX),
        StepKind("boosting_onnx", "Convert an XGBoost, LightGBM or CatBoost model to ONNX", "conversion",
                 "converters.boosting_onnx:convert", ("boosting",), BoostingExportOptions, ConversionReport,
                 takes=(Format.XGBOOST, Format.LIGHTGBM, Format.CATBOOST), gives=Format.ONNX),
        StepKind("savedmodel_onnx", "Convert a TensorFlow SavedModel's served signature to ONNX", "conversion",
                 "converters.tensorflow_onnx:convert_saved_model", ("tensorflow",), TensorflowExportOptions,
                 ConversionReport, takes=(Format.SAVED_MODEL,), gives=Format.ONNX),
        StepKind("keras_onnx", "Trace a Keras model in TensorFlow and convert it to ONNX", "conversion",
                 "converters.tensorflow_onnx:convert_keras", ("tensorflow",), KerasExportOptions, ConversionReport,
                 takes=(Format.KERAS,), gives=Format.ONNX),
        StepKind("tflite_onnx", "Convert a TFLite model to ONNX", "conversion",
                 "converters.tensorflow_onnx:convert_tflite", ("tensorflow",), TensorflowExportOptions,
                 ConversionReport, takes=(Format.TFLITE,), gives=Format.ONNX),
        StepKind("onnx_tensorrt_rtx", "Build TensorRT-RTX engines for named GPU architectures, without a GPU",
                 "conversion", "converters.onnx_tensorrt_rtx:convert", ("tensorrt_rtx",), TensorrtRtxOptions,
                 ConversionReport, takes=(Format.ONNX,), gives=Format.TENSORRT_RTX, reads_target=True),
        StepKind("onnx_tensorrt", "Build a TensorRT plan for the GPU of this machine", "conversion",
                 "converters.onnx_tensorrt:convert", ("tensorrt",), TensorrtOptions, ConversionReport,
                 takes=(Format.ONNX,), gives=Format.TENSORRT, reads_target=True),
        StepKind("onnx_optimize", "Raise the opset, fold and fuse the graph offline", "conversion",
                 "converters.onnx_optimize:convert", ("onnx",), OnnxOptimizeOptions, ConversionReport,
                 takes=(Format.ONNX,), gives=Format.ONNX),
        StepKind("onnx_int8", "Quantise weights to int8 per channel, activations at run time", "conversion",
                 "converters.onnx_int8:convert", ("onnx",), OnnxInt8Options, ConversionReport,
                 takes=(Format.ONNX,), gives=Format.ONNX, precision=Precision.INT8, reads_target=True),
        StepKind("onnx_int8_static", "Quantise weights and activations to int8, calibrated on inputs", "conversion",
                 "converters.onnx_int8_static:convert", ("onnx",), OnnxInt8StaticOptions, ConversionReport,
                 takes=(Format.ONNX,), gives=Format.ONNX, precision=Precision.INT8, reads_target=True),
        StepKind("onnx_fp16", "Store and compute in float16, inputs and outputs in float32", "conversion",
                 "converters.onnx_fp16:convert", ("onnx",), OnnxFp16Options, ConversionReport,
                 takes=(Format.ONNX,), gives=Format.ONNX, precision=Precision.FP16),
        StepKind("onnx_int8_weights", "Store the weights of matrix multiplications as int8 in blocks", "conversion",
                 "converters.onnx_weights:convert", ("onnx",), OnnxWeightsOptions, ConversionReport,
                 takes=(Format.ONNX,), gives=Format.ONNX, precision=Precision.INT8),
        StepKind("onnx_int4_weights", "Store the weights of matrix multiplications as int4 in blocks", "conversion",
                 "converters.onnx_weights:convert", ("onnx",), OnnxWeightsOptions, ConversionReport,
                 takes=(Format.ONNX,), gives=Format.ONNX, precision=Precision.INT4),
        StepKind("onnx_openvino", "Convert ONNX to OpenVINO IR", "conversion",
                 "converters.openvino_ir:convert", ("openvino",), OnnxOpenvinoOptions, ConversionReport,
                 takes=(Format.ONNX,), gives=Format.OPENVINO),
        StepKind("openvino_bf16", "Have OpenVINO compute in bfloat16", "conversion",
                 "converters.openvino_ir:hint_bf16", ("openvino",), OpenvinoHintOptions, ConversionReport,
                 takes=(Format.OPENVINO,), gives=Format.OPENVINO, precision=Precision.BF16),
        StepKind("openvino_int8", "Quantise weights and activations to int8, calibrated on real inputs", "conversion",
                 "converters.openvino_int8:convert", ("openvino",), OpenvinoInt8Options, ConversionReport,
                 takes=(Format.OPENVINO,), gives=Format.OPENVINO, precision=Precision.INT8, reads_target=True),
        StepKind("openvino_weights", "Compress weights to int8, activations stay", "conversion",
                 "converters.openvino_weights:convert", ("openvino",), OpenvinoWeightsOptions, ConversionReport,
                 takes=(Format.OPENVINO,), gives=Format.OPENVINO, precision=Precision.INT8),
        StepKind("openvino_weights4", "Compress weights to int4 in groups, activations stay", "conversion",
                 "converters.openvino_weights:convert", ("openvino",), OpenvinoWeights4Options, ConversionReport,
                 takes=(Format.OPENVINO,), gives=Format.OPENVINO, precision=Precision.INT4),
        StepKind("parity", "Compare a candidate with the original, output by output", "proof",
                 "converters.parity:parity", _CANDIDATE_RUNTIMES, ParityOptions, ParityReport, takes=_CANDIDATES),
        StepKind("measure", "Time original and candidates in turn", "proof", "converters.measure:measure",
                 _RUNTIMES, MeasureOptions, MeasureReport, takes=_RUN),
        StepKind("try_model", "One sample inference with a deployed model", "proof", "converters.try_model:try_model",
                 _CANDIDATE_RUNTIMES, TryOptions, TryReport, takes=_CANDIDATES),
    )
}  # fmt: skip


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
