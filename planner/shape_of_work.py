"""What the descriptor says about where a model's work lies: matrices, convolutions, trees."""

from __future__ import annotations

import re
from dataclasses import dataclass

from schemas.catalog import SERVED_IR, SERVED_OPSET
from schemas.descriptor import Format, ModelDescriptor
from schemas.precision import Precision

INT8_LEAST_BYTES = 256 << 10
"""Least weight bytes for which int8 is tried: below it the whole model fits a core's cache, and what is saved in
reading weights is lost again in quantising the activations of every call."""

_MATRIX = re.compile(
    r"^(matmul|gemm|linear|addmm|mm|bmm|baddbmm|attention|lstm|gru|dense|einsumdense|batchmatmul|fully_connected)"
)
_CONVOLUTION = re.compile(r"^(conv|groupconv|depthwise|separable|mkldnn_conv|thnn_conv|_convolution|cudnn_convolution)")
_QUANTISED = re.compile(
    r"^(fakequantize|qlinear|matmulinteger|convinteger|dynamicquantize|dequantizelinear|quantizelinear)"
)
_CONVOLUTIONAL_ARCHITECTURE = re.compile(r"resnet|convnext|mobilenet|efficientnet|regnet|densenet|unet|yolo|vgg", re.I)
_TREES = re.compile(
    r"RandomForest|ExtraTree|DecisionTree|GradientBoosting|IsolationForest|AdaBoost|TreeEnsemble|XGB|LGBM|CatBoost"
)
_CLASSICAL_OPERATORS = re.compile(
    r"TreeEnsemble|LinearClassifier|LinearRegressor|SVMClassifier|SVMRegressor|ai\.onnx\.ml"
)
_TRANSFORMER = re.compile(r"attention|layer_?norm|\bMVN\b", re.I)
_TABULAR = frozenset({Format.SKLEARN, Format.SKOPS, Format.XGBOOST, Format.LIGHTGBM, Format.CATBOOST})
_BOOSTED = {Format.XGBOOST: "XGBoost", Format.LIGHTGBM: "LightGBM", Format.CATBOOST: "CatBoost"}
_NEURAL = re.compile(r"MLP(Classifier|Regressor)")


@dataclass(frozen=True)
class Work:
    """Operators by what they cost; ``known`` is False where the descriptor has no operators at all."""

    known: bool
    matrices: int
    convolutions: int
    quantised: int
    trees: str | None
    neural: bool
    classical: bool = False
    """An estimator of classical machine learning that is no neural network."""
    transformer: bool = False


def mostly_convolutions(descriptor: ModelDescriptor, work: Work) -> bool:
    """Whether convolutions, which dynamic int8 leaves as they are, hold most weights; by count where bytes are unknown.

    Counts alone mislead at the edges: VGG has five times as many convolutions as matrices, and 94% of its weights in
    the matrices.
    """
    if descriptor.matrix_bytes is not None:
        return descriptor.matrix_bytes < weight_bytes(descriptor) / 2
    return work.convolutions > 4 * work.matrices


def work_of(descriptor: ModelDescriptor) -> Work:
    """Sort the descriptor's operators; torch names lose their namespace and overload (``aten::mm`` is ``mm``)."""
    counts = {"matrix": 0, "convolution": 0, "quantised": 0}
    for name, count in descriptor.operators.items():
        plain = _plain(name)
        if _QUANTISED.match(plain):
            counts["quantised"] += count
        elif _CONVOLUTION.match(plain):
            counts["convolution"] += count
        elif _MATRIX.match(plain):
            counts["matrix"] += count
    known = bool(descriptor.operators)
    architecture = descriptor.architecture or ""
    if not known and _CONVOLUTIONAL_ARCHITECTURE.search(architecture):
        return Work(known=True, matrices=1, convolutions=50, quantised=0, trees=None, neural=False)
    words = " ".join((architecture, *descriptor.operators))
    trees = _TREES.search(words)
    neural = bool(_NEURAL.search(words))
    tabular = descriptor.format in _TABULAR or bool(_CLASSICAL_OPERATORS.search(words))
    return Work(
        known=known,
        matrices=counts["matrix"],
        convolutions=counts["convolution"],
        quantised=counts["quantised"] or int(own_precision(descriptor) is Precision.INT8),
        trees=trees.group(0) if trees else _BOOSTED.get(descriptor.format),
        neural=neural,
        classical=(tabular or trees is not None) and not neural,
        transformer=descriptor.format is Format.HUGGINGFACE or bool(_TRANSFORMER.search(words)),
    )


def _plain(name: str) -> str:
    after_namespace = name.rsplit("::", 1)[-1]
    parts = [part for part in after_namespace.split(".") if part not in ("aten", "ai", "onnx", "com", "microsoft")]
    return (parts[0] if parts else after_namespace).lower().lstrip("_")


def matrix_bytes(descriptor: ModelDescriptor) -> int:
    """Return the bytes that matrix products multiply by, or those of all weights where that is not known."""
    weights = weight_bytes(descriptor)
    return weights if descriptor.matrix_bytes is None else min(descriptor.matrix_bytes, weights)


def weight_bytes(descriptor: ModelDescriptor) -> int:
    """Return the bytes of the weights, or the file's size where the weights are not known."""
    return descriptor.parameter_bytes if descriptor.parameter_bytes is not None else descriptor.size_bytes


def own_precision(descriptor: ModelDescriptor) -> Precision:
    """Return the precision that the model was saved in: fp16 when most of its floating parameters are halves.

    bfloat16 counts as fp16, which has the nearest tolerance. A Hugging Face folder is loaded as float32 whatever it
    stores. A quantised ONNX model counts as fp32: what is made of it does the same arithmetic, so it is held to the
    stricter tolerance.
    """
    if descriptor.format is Format.HUGGINGFACE:
        return Precision.FP32
    if descriptor.format is Format.TFLITE and {"int8", "uint8", "int16"} & descriptor.parameter_dtypes.keys():
        # TFLite rounds after every operator in integers, ONNX's quantised graphs compute in float between them.
        return Precision.INT8
    halves = sum(descriptor.parameter_dtypes.get(dtype, 0) for dtype in ("float16", "bfloat16"))
    whole = sum(descriptor.parameter_dtypes.get(dtype, 0) for dtype in ("float32", "float64"))
    if not halves and not whole:
        # Without parameters, what goes in says in what it calculates.
        fed = [spec.dtype for spec in descriptor.inputs if "float" in spec.dtype]
        halves = sum(dtype in ("float16", "bfloat16") for dtype in fed)
        whole = len(fed) - halves
    return Precision.FP16 if halves > whole else Precision.FP32


def newer_than_served(descriptor: ModelDescriptor) -> str:
    """Return what of an ONNX file is newer than the target's onnxruntime loads, such as ``opset 23``; '' for nothing.

    The analyzer writes the file format's version as the framework's: ``IR 11``.
    """
    version = (descriptor.framework_version or "").removeprefix("IR ")
    newer = [f"opset {descriptor.opset}"] if (descriptor.opset or 0) > SERVED_OPSET else []
    if version.isdecimal() and int(version) > SERVED_IR:
        newer.append(f"IR version {version}")
    return " and ".join(newer) if descriptor.format is Format.ONNX else ""


def not_carried(descriptor: ModelDescriptor) -> str:
    """Return what of the original's tensors Triton has no shape for, in words; '' for nothing.

    Triton 24.12 refuses tensors without axes beside models that are not batched, axes of size 0, lists, maps, what is
    optional, and float8.
    """
    for side, specs in (("input", descriptor.inputs), ("output", descriptor.outputs)):
        for spec in specs:
            if spec.name in descriptor.types_in_file:
                return f"its {side} {spec.name!r} is of type {descriptor.types_in_file[spec.name]}"
            if not spec.shape:
                return f"its {side} {spec.name!r} is a scalar"
            if 0 in spec.shape:
                return f"its {side} {spec.name!r} has an axis of size 0"
    if "ai.onnx.ml::ZipMap" in descriptor.operators:
        return "its probabilities are a list of maps (ZipMap)"
    return ""
