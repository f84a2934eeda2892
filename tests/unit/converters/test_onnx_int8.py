from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from converters import onnx_int8, onnx_optimize
from schemas.descriptor import Format
from schemas.errors import ConversionFailed


def graph_model(nodes, weights, inputs, outputs, *more_opsets) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "graph", inputs, outputs, weights)
    opsets = [helper.make_opsetid("", 17), *more_opsets]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def value(name: str, shape, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def array(name: str, *shape: int) -> onnx.TensorProto:
    rng = np.random.default_rng(len(name))
    return numpy_helper.from_array((rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32), name)


def perceptron(kind: str = "MatMul") -> onnx.ModelProto:
    """Two layers whose channels differ a thousandfold, so that one scale for all of them shows."""
    first = numpy_helper.to_array(array("w1", 64, 64)) * np.logspace(-3, 0, 64, dtype=np.float32)
    if kind == "MatMul":
        layers = [helper.make_node("MatMul", ["x", "w1"], ["h"]), helper.make_node("MatMul", ["t", "w2"], ["y"])]
    else:
        layers = [helper.make_node("Gemm", ["x", "w1", "b"], ["h"]), helper.make_node("Gemm", ["t", "w2", "b"], ["y"])]
    nodes = [layers[0], helper.make_node("Tanh", ["h"], ["t"]), layers[1]]
    weights = [numpy_helper.from_array(first, "w1"), array("w2", 64, 64), array("b", 64)]
    return graph_model(nodes, weights, [value("x", ["batch", 64])], [value("y", ["batch", 64])])


def write(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path


def answer(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(model).run(None, {"x": x})[0]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b)))


@pytest.mark.parametrize("kind", ["MatMul", "Gemm"])
def test_weights_shrink_to_a_quarter_and_answers_stay_near(tmp_path, make_context, run_onnx, kind):
    model = perceptron(kind)
    path = write(model, tmp_path / "model.onnx")
    context = make_context("onnx_int8", path, Format.ONNX)
    report = onnx_int8.convert(context).report

    x = np.random.default_rng(0).standard_normal((9, 64)).astype(np.float32)
    assert cosine(run_onnx(context, {"x": x})["y"], answer(model, x)) > 0.99
    assert report.size_bytes < path.stat().st_size / 2
    assert report.operators["MatMulInteger"] == 2
    assert report.inputs[0].shape == ("batch", 64)
    assert report.outputs[0].shape == ("batch", 64)
    assert report.notes[0].startswith("2 matrix multiplications have int8 weights")


def test_one_scale_per_channel_is_nearer_than_one_for_all(tmp_path, make_context, run_onnx):
    model = perceptron()
    path = write(model, tmp_path / "model.onnx")
    x = np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32)
    near = {}
    for per_channel in (True, False):
        options = {"per_channel": per_channel, "reduce_range": True}  # what every CPU multiplies right
        context = make_context("onnx_int8", path, Format.ONNX, options=options)
        onnx_int8.convert(context)
        near[per_channel] = cosine(run_onnx(context, {"x": x})["y"], answer(model, x))
    assert near[True] > near[False]


def test_an_optimised_graph_can_be_quantised(tmp_path, make_context, run_onnx):
    model = perceptron("Gemm")
    first = make_context("onnx_optimize", write(model, tmp_path / "model.onnx"), Format.ONNX)
    onnx_optimize.convert(first)
    second = make_context("onnx_int8", first.out / "model", Format.ONNX)
    onnx_int8.convert(second)
    x = np.random.default_rng(0).standard_normal((9, 64)).astype(np.float32)
    assert cosine(run_onnx(second, {"x": x})["y"], answer(model, x)) > 0.99


def test_embeddings_shrink_too(tmp_path, make_context, run_onnx):
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("MatMul", ["rows", "w"], ["y"]),
    ]
    weights = [array("table", 1000, 64), array("w", 64, 8)]
    model = graph_model(
        nodes, weights, [value("ids", ["batch", "sequence"], 7)], [value("y", ["batch", "sequence", 8])]
    )
    path = write(model, tmp_path / "model.onnx")
    context = make_context("onnx_int8", path, Format.ONNX)
    report = onnx_int8.convert(context).report
    assert report.size_bytes < path.stat().st_size * 0.35
    assert run_onnx(context, {"ids": np.array([[1, 2, 3]])})["y"].shape == (1, 3, 8)


def test_convolutions_stay_float_with_a_note(tmp_path, make_context):
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "b"], ["y"]),
    ]
    weights = [array("k", 16, 3, 3, 3), array("w", 16, 10), array("b", 10)]
    model = graph_model(nodes, weights, [value("x", ["batch", 3, 8, 8])], [value("y", ["batch", 10])])
    context = make_context("onnx_int8", write(model, tmp_path / "model.onnx"), Format.ONNX)
    report = onnx_int8.convert(context).report
    assert report.operators["Conv"] == 1
    assert "ConvInteger" not in report.operators
    assert "1 convolutions stay float32" in report.notes[1]


def test_a_model_without_matrices_is_refused(tmp_path, make_context):
    nodes = [helper.make_node("Conv", ["x", "k"], ["y"])]
    model = graph_model(
        nodes, [array("k", 4, 3, 3, 3)], [value("x", ["batch", 3, 8, 8])], [value("y", ["batch", 4, 6, 6])]
    )
    with pytest.raises(ConversionFailed, match="has no MatMul or Gemm to quantise"):
        onnx_int8.convert(make_context("onnx_int8", write(model, tmp_path / "model.onnx"), Format.ONNX))


def test_a_product_of_two_inputs_is_refused(tmp_path, make_context):
    model = graph_model(
        [helper.make_node("MatMul", ["a", "b"], ["y"])],
        [],
        [value("a", [4, 4]), value("b", [4, 4])],
        [value("y", [4, 4])],
    )
    with pytest.raises(ConversionFailed, match="has no MatMul or Gemm to quantise"):
        onnx_int8.convert(make_context("onnx_int8", write(model, tmp_path / "model.onnx"), Format.ONNX))
