"""ChannelQuantizers: onnxruntime's quantisers, with all channels of a weight at once.

Their own ask Python for each channel, which is 20,736 times for MiniLM and 27,560 for ResNet-50: 1.3 s of the 1.5 and
0.8 s of the 2.2 that quantising took, and as much again for every build of a search. The numbers are the same to the
bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.base_quantizer import QuantizationParams
from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import get_qmin_qmax_for_qType

from converters.arrays import Array

_SUFFIX = "_quantized"
"""What onnxruntime calls a quantised weight, after its name."""
_TYPES = (TensorProto.INT8, TensorProto.UINT8)


class DynamicChannelQuantizer(ONNXQuantizer):  # type: ignore[misc]
    """``ONNXQuantizer`` that quantises a float32 matrix in one go, and leaves the rest to it."""

    def quantize_weight_per_channel_impl(
        self, weight_name: str, weight_qType: int, channel_axis: int, reduce_range: bool = True,
        keep_float_weight: bool = False,
    ) -> tuple[str, str, str]:  # fmt: skip
        """Add the weight, its scales and zero points as initializers; return their names, the scales' last."""
        weight = next(tensor for tensor in self.model.initializer() if tensor.name == weight_name)
        if not _is_plain(self, weight, weight_qType) or keep_float_weight:
            names: tuple[str, str, str] = super().quantize_weight_per_channel_impl(
                weight_name, weight_qType, channel_axis, reduce_range, keep_float_weight
            )
            return names
        values = numpy_helper.to_array(weight)
        symmetric = self.is_weight_symmetric(weight_qType)
        scale, zero = _parameters(values, channel_axis, weight_qType, symmetric, self.reduce_range and reduce_range)
        # As quantize_nparray of onnxruntime.quantization.quant_utils does for each channel.
        bounds = np.iinfo(zero.dtype)
        quantized = np.clip((values / scale).round() + zero, bounds.min, bounds.max).astype(zero.dtype)
        added = {
            f"{weight_name}_scale": (TensorProto.FLOAT, scale),
            f"{weight_name}_zero_point": (weight_qType, zero),
        }
        self.model.initializer_extend(
            [helper.make_tensor(name, kind, [array.size], array.ravel()) for name, (kind, array) in added.items()]
        )
        self.model.initializer_extend([numpy_helper.from_array(quantized, f"{weight_name}{_SUFFIX}")])
        return f"{weight_name}{_SUFFIX}", f"{weight_name}_zero_point", f"{weight_name}_scale"


class StaticChannelQuantizer(QDQQuantizer):  # type: ignore[misc]
    """``QDQQuantizer`` that finds the scales of a float32 weight in one go, and leaves the rest to it."""

    def _calc_initializer_quant_params(self) -> dict[str, QuantizationParams]:
        weights = {tensor.name: tensor for tensor in self.model.initializer()}
        every: dict[str, Any] = self.tensors_to_quantize  # type: ignore[has-type]
        found: dict[str, QuantizationParams] = {}
        for name, info in every.items():
            kind = self.weight_qType if info.tensor_type.name == "WEIGHT" else self.activation_qType
            if info.axis is None or name not in weights or not _is_plain(self, weights[name], kind):
                continue
            values = numpy_helper.to_array(weights[name])
            # onnxruntime's operators ask for one zero point in all channels, which is what symmetric gives.
            scale, zero = _parameters(values, info.axis, kind, True, self.reduce_range)
            axis = info.axis % values.ndim
            found[name] = QuantizationParams(zero_point=zero.ravel(), scale=scale.ravel(), quant_type=kind, axis=axis)
        self.tensors_to_quantize = {name: info for name, info in every.items() if name not in found}
        try:
            rest: dict[str, QuantizationParams] = super()._calc_initializer_quant_params()
        finally:
            self.tensors_to_quantize = every
        return {**rest, **found}


def _is_plain(quantizer: Any, weight: TensorProto, kind: int) -> bool:
    """Whether nothing was asked for that ``_parameters`` does not know."""
    return (
        weight.data_type == TensorProto.FLOAT
        and kind in _TYPES
        and 0 not in weight.dims
        and quantizer.min_real_range is None
        and weight.name not in quantizer.tensor_quant_overrides
        and not getattr(quantizer, "block_size", 0)
    )


def _parameters(
    values: Array, channel_axis: int, kind: int, symmetric: bool, reduce_range: bool
) -> tuple[Array, Array]:
    """Return scales and zero points, of size 1 on all axes but ``channel_axis``.

    As compute_scale_zp of onnxruntime.quantization.quant_utils does for each channel.
    """
    least, most = get_qmin_qmax_for_qType(kind, reduce_range, symmetric=symmetric)
    others = tuple(axis for axis in range(values.ndim) if axis != channel_axis % values.ndim)
    low = np.minimum(values.min(axis=others, keepdims=True), np.float32(0))
    high = np.maximum(values.max(axis=others, keepdims=True), np.float32(0))
    if symmetric:
        high = np.maximum(np.abs(low), np.abs(high))
        low = -high
    scale = (high.astype(np.float64) - low) / (np.float64(most) - np.float64(least))
    nothing = scale < np.finfo(np.float32).tiny
    scale = np.where(nothing, 1.0, scale)
    middle = np.round((least + most) / np.float64(2)) if symmetric else np.round(least - low / scale)
    return scale.astype(np.float32), np.where(nothing, 0, middle).astype(least.dtype)
