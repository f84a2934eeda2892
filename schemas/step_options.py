"""The typed, bounded options of every step kind."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from schemas.descriptor import Format
from schemas.document import Document
from schemas.precision import Precision

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

    search_trials: int = Field(default=6, ge=1, le=50, description="Models tried at most; 1 is no search")
    search_budget_s: float = Field(default=60, ge=0, le=3600, description="No new model is tried when it is spent")


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
    ranges: Literal["auto", "mean", "widest"] = Field(
        default="auto",
        description="What bounds an activation: the mean of the inputs' extremes, or the widest; auto tries those "
        "where the mean misses the tolerance, but for transformers, whose outliers they would keep",
    )
    reduce_range: bool = Field(default=False, description="7-bit weights, for CPUs without VNNI")
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
    budget_s: float = Field(
        default=60,
        gt=0,
        le=3600,
        description="Rounds stop early when it is spent: never below 5 where batch sizes decide, and 1 elsewhere",
    )


class TryOptions(Document):
    """Options of ``try_model``."""

    rows: int = Field(default=1, ge=1, le=64)
    format: Format = Field(default=Format.ONNX, description="Format of the deployed model")
    original: bool = Field(default=False, description="The deployed model is the dropped one itself")
