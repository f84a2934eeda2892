from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from converters import onnx_fp16, onnx_optimize
from schemas.descriptor import Format
from schemas.errors import ConversionFailed


def network(width: int = 64) -> onnx.ModelProto:
    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array((rng.standard_normal(shape) / np.sqrt(width)).astype(np.float32), name)

    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("MatMul", ["rows", "w"], ["h"]),
        helper.make_node("LayerNormalization", ["h", "gain"], ["n"], axis=-1),
        helper.make_node("Softmax", ["n"], ["y"], axis=-1),
    ]
    weights = [weight("table", 50, width), weight("w", width, width), weight("gain", width)]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "sequence", width])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


IDS = np.array([[1, 2, 3], [4, 5, 49]])


def answer(model: onnx.ModelProto) -> np.ndarray:
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(model).run(None, {"ids": IDS})[0]


@pytest.mark.parametrize("optimised", [False, True])
def test_the_file_is_half_as_large_and_its_tensors_stay_what_they_were(tmp_path, make_context, run_onnx, optimised):
    path = tmp_path / "model.onnx"
    onnx.save(network(), path)
    before = path.stat().st_size
    if optimised:
        first = make_context("onnx_optimize", path, Format.ONNX)
        onnx_optimize.convert(first)
        path = first.out / "model" / "model.onnx"
    context = make_context("onnx_fp16", path, Format.ONNX)
    report = onnx_fp16.convert(context).report
    got = run_onnx(context, {"ids": IDS})["y"]
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, answer(network()), atol=1e-3)
    assert report.size_bytes < before * 0.6
    assert [spec.dtype for spec in (*report.inputs, *report.outputs)] == ["int64", "float32"]
    assert report.outputs[0].shape == ("batch", "sequence", 64)


def test_sums_that_leave_the_range_stay_in_float32(tmp_path, make_context):
    onnx.save(network(), tmp_path / "model.onnx")
    report = onnx_fp16.convert(make_context("onnx_fp16", tmp_path / "model.onnx", Format.ONNX)).report
    assert "LayerNormalization, Softmax" in report.notes[1]


def test_operators_that_a_person_names_stay_in_float32(tmp_path, make_context):
    onnx.save(network(), tmp_path / "model.onnx")
    options = {"keep_float32": ["MatMul"]}
    context = make_context("onnx_fp16", tmp_path / "model.onnx", Format.ONNX, options=options)
    assert "MatMul" in onnx_fp16.convert(context).report.notes[1]
    saved = {
        tensor.name: tensor.data_type for tensor in onnx.load(context.out / "model" / "model.onnx").graph.initializer
    }
    assert saved["w"] == TensorProto.FLOAT


def test_a_model_without_float_weights_is_refused(tmp_path, make_context):
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "model.onnx"
    )
    with pytest.raises(ConversionFailed, match="no float32 weights"):
        onnx_fp16.convert(make_context("onnx_fp16", tmp_path / "model.onnx", Format.ONNX))
