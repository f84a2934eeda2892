"""Every step kind: what it takes and gives, its typed options, and the function that runs it in the child.

Adding a converter is one entry here, its options in ``schemas/step_options.py``, one file in
``converters/`` and one test file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from schemas.descriptor import AnalysisReport, Format, ModelDescriptor, ProbeReport, UnpackReport
from schemas.document import Document
from schemas.errors import InvalidDocument, Unsupported
from schemas.evidence import ConversionReport, MeasureReport, ParityReport, ReferenceReport, TryReport
from schemas.precision import Precision
from schemas.runtime import Runtime
from schemas.step_options import (
    AnalyzeOptions,
    AotInductorOptions,
    BoostingExportOptions,
    HuggingfaceExportOptions,
    KerasExportOptions,
    MeasureOptions,
    OnnxFp16Options,
    OnnxInt8Options,
    OnnxInt8StaticOptions,
    OnnxOpenvinoOptions,
    OnnxOptimizeOptions,
    OnnxWeightsOptions,
    OpenvinoHintOptions,
    OpenvinoInt8Options,
    OpenvinoWeights4Options,
    OpenvinoWeightsOptions,
    ParityOptions,
    ProbeOptions,
    ReferenceOptions,
    SklearnExportOptions,
    TensorflowExportOptions,
    TensorrtOptions,
    TensorrtRtxOptions,
    TorchExportOptions,
    TorchscriptOptions,
    TryOptions,
    UnpackOptions,
)

Role = Literal["analysis", "conversion", "proof"]
Gpu = Literal["never", "always", "format"]


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
    gpu: Gpu = "never"
    """Whether a step of it needs a GPU; ``format``: when a model that it runs is of one of ``GPU_FORMATS``."""


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

GPU_FORMATS = frozenset({Format.TENSORRT})
"""Formats that nothing but a GPU runs. All others run on the CPU here, also as a proxy for a target's GPU."""

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
                 _RUNTIMES, ProbeOptions, ProbeReport, takes=_RUN, gpu="format"),
        StepKind("reference", "Compute the original's outputs before any export", "proof",
                 "converters.reference:reference", _RUNTIMES, ReferenceOptions, ReferenceReport, takes=_RUN,
                 gpu="format"),
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
                 takes=(Format.ONNX,), gives=Format.TENSORRT, reads_target=True, gpu="always"),
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
                 "converters.parity:parity", _CANDIDATE_RUNTIMES, ParityOptions, ParityReport, takes=_CANDIDATES,
                 gpu="format"),
        StepKind("measure", "Time original and candidates in turn", "proof", "converters.measure:measure",
                 _RUNTIMES, MeasureOptions, MeasureReport, takes=_RUN, gpu="format"),
        StepKind("try_model", "One sample inference with a deployed model", "proof", "converters.try_model:try_model",
                 _CANDIDATE_RUNTIMES, TryOptions, TryReport, takes=_CANDIDATES, gpu="format"),
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


def needs_gpu(kind: str, options: Document, original: Format | None) -> bool:
    """Whether a step needs a GPU, by its kind, or by the format of what it runs: candidates, ``original``, or both."""
    need = entry(kind).gpu
    if need != "format":
        return need == "always"
    if isinstance(options, ParityOptions | TryOptions):
        return options.format in GPU_FORMATS
    candidates = options.formats.values() if isinstance(options, MeasureOptions) else ()
    return bool(GPU_FORMATS.intersection((*candidates, *((original,) if original else ()))))


def parse_options(kind: str, options: dict[str, Any]) -> Document:
    """Return ``options`` as the kind's own model. Raises InvalidDocument that names the pointer."""
    try:
        return entry(kind).options.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        pointer = "/options/" + "/".join(str(part) for part in first["loc"])
        raise InvalidDocument(f"Step {kind}: {pointer} {first['msg']}.", pointer=pointer) from None
