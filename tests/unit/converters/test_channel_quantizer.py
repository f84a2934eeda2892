"""All channels of a weight at once give what onnxruntime's quantisers give for one after the other, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from converters import onnx_file, onnx_int8
from schemas.step_options import OnnxInt8Options


def _weights(*shape: int) -> np.ndarray[Any, Any]:
    """Channels of several sizes along the last axis and the first, one of them nothing and one nearly so."""
    rng = np.random.default_rng(3)
    values = rng.standard_normal(shape).astype(np.float32) * np.geomspace(1e-3, 1e3, shape[-1], dtype=np.float32)
    values[..., 0], values[..., 1], values[..., 2] = 0, 1e-44, np.abs(values[..., 2])
    values[0] = -np.abs(values[0])
    return values


def _model() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "k", "c"], ["h"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("MatMul", ["f", "w"], ["m"], name="matmul"),
        helper.make_node("Gemm", ["m", "g", "b"], ["y"], name="gemm", transB=1),
    ]
    weights = {
        "k": _weights(6, 3, 3, 3), "c": np.ones(6, np.float32), "w": _weights(6, 8),
        "g": _weights(4, 8), "b": np.ones(4, np.float32),
    }  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _parts(model: onnx.ModelProto) -> tuple[Any, Any]:
    weights = {
        t.name: (t.data_type, tuple(t.dims), numpy_helper.to_array(t).tobytes()) for t in model.graph.initializer
    }
    return weights, sorted((node.op_type, tuple(node.input), tuple(node.output)) for node in model.graph.node)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("weight_type", ["int8", "uint8"])
@pytest.mark.parametrize("reduce_range", [True, False])
def test_dynamic_int8_is_what_quantize_dynamic_writes(
    tmp_path: Path, per_channel: bool, weight_type: str, reduce_range: bool
) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    options = OnnxInt8Options(per_channel=per_channel, weight_type=weight_type, reduce_range=reduce_range)
    ours = onnx_int8._quantize(_model(), options, ())
    quantize_dynamic(
        _model(),
        tmp_path / "theirs.onnx",
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=per_channel,
        reduce_range=reduce_range,
        weight_type=QuantType.QInt8 if weight_type == "int8" else QuantType.QUInt8,
        extra_options={"DefaultTensorType": 1, "MatMulConstBOnly": True},
    )
    assert _parts(ours) == _parts(onnx.load(tmp_path / "theirs.onnx"))
    assert onnx_file.operators(ours)["MatMulInteger"] == 2


def test_a_weight_that_holds_nothing_is_left_to_onnxruntime(tmp_path: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="matmul")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 0])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(np.zeros((0, 4), np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    ours = onnx_int8._quantize(model, OnnxInt8Options(per_channel=True, reduce_range=False), ())
    quantize_dynamic(model, tmp_path / "theirs.onnx", per_channel=True, extra_options={"DefaultTensorType": 1})
    assert _parts(ours) == _parts(onnx.load(tmp_path / "theirs.onnx"))


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("reduce_range", [True, False])
def test_static_int8_is_what_onnxruntime_s_own_quantiser_makes(per_channel: bool, reduce_range: bool) -> None:
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    from converters.channel_quantizer import StaticChannelQuantizer

    def made(quantizer: type[QDQQuantizer]) -> onnx.ModelProto:
        span = (np.array(-3, np.float32), np.array(5, np.float32))
        names = [name for node in _model().graph.node for name in node.output] + ["x"]
        ranges = TensorsData(
            CalibrationMethod.MinMax, {name: TensorData(lowest=span[0], highest=span[1]) for name in names}
        )
        options = {"DefaultTensorType": 1, "MatMulConstBOnly": True}
        writer = quantizer(
            _model(), per_channel, reduce_range, QuantType.QInt8, QuantType.QUInt8, ranges, [], [],
            ["Conv", "Relu", "MatMul", "Gemm"], options,
        )  # fmt: skip
        writer.quantize_model()
        return writer.model.model

    ours = made(StaticChannelQuantizer)
    assert _parts(ours) == _parts(made(QDQQuantizer))
    scales = {tensor.name: tensor.dims for tensor in ours.graph.initializer if tensor.name.endswith("_scale")}
    assert list(scales["k_scale"]) == ([6] if per_channel else [])


def test_one_zero_point_of_a_weight_is_found_for_all_its_channels_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxruntime.quantization.base_quantizer import BaseQuantizer

    def one_by_one(*given: Any, **more: Any) -> None:
        raise AssertionError("a channel after the other")

    monkeypatch.setattr(BaseQuantizer, "quantize_weight_per_channel_impl", one_by_one)
    onnx_int8._quantize(_model(), OnnxInt8Options(per_channel=True), ())
