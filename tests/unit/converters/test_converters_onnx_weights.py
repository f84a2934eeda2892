from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from converters import int8_tables, onnx_weights
from schemas.descriptor import Format
from schemas.errors import ConversionFailed

IDS = np.array([[1, 2, 3], [4, 5, 999]])


def network(kind: str = "MatMul", transposed: bool = False) -> onnx.ModelProto:
    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array((rng.standard_normal(shape) / 8).astype(np.float32), name)

    w = numpy_helper.to_array(weight("w", 64, 128))
    if kind == "MatMul":
        product = helper.make_node("MatMul", ["flat", "w"], ["y"])
    else:
        product = helper.make_node("Gemm", ["flat", "w", "b"], ["y"], transB=int(transposed))
        w = w.T.copy() if transposed else w
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("ReduceMean", ["rows"], ["flat"], axes=[1], keepdims=0),
        product,
    ]
    weights = [weight("table", 1000, 64), numpy_helper.from_array(w, "w"), weight("b", 128)]
    if kind == "MatMul":
        weights.pop()
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 128])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def answer(model: onnx.ModelProto) -> np.ndarray:
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(model).run(None, {"ids": IDS})[0]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b)))


@pytest.mark.parametrize(("kind", "transposed"), [("MatMul", False), ("Gemm", False), ("Gemm", True)])
@pytest.mark.parametrize(("step", "near"), [("onnx_int8_weights", 0.9995), ("onnx_int4_weights", 0.98)])
def test_weights_are_stored_in_blocks_of_few_bits(tmp_path, make_context, run_onnx, kind, transposed, step, near):
    model = network(kind, transposed)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    context = make_context(step, path, Format.ONNX)
    report = onnx_weights.convert(context).report
    assert cosine(run_onnx(context, {"ids": IDS})["y"], answer(model)) > near
    assert report.operators["com.microsoft::MatMulNBits"] == 1
    assert report.size_bytes < path.stat().st_size * 0.4
    assert report.notes[0].startswith(f"1 matrix multiplications have {step[5:9]} weights")
    assert report.outputs[0].shape == ("batch", 128)


def test_smaller_blocks_are_nearer(tmp_path, make_context, run_onnx):
    model = network()
    onnx.save(model, tmp_path / "model.onnx")
    near = {}
    for size in (16, 64):
        options = {"block_size": size, "accuracy_level": 1}
        context = make_context("onnx_int4_weights", tmp_path / "model.onnx", Format.ONNX, options=options)
        onnx_weights.convert(context)
        near[size] = cosine(run_onnx(context, {"ids": IDS})["y"], answer(model))
    assert near[16] > near[64]


def test_a_table_shared_with_a_product_is_left_alone():
    model = network()
    model.graph.node.append(helper.make_node("Transpose", ["table"], ["turned"]))
    model.graph.node.append(helper.make_node("MatMul", ["flat", "turned"], ["scores"]))
    assert int8_tables.shrink(model) == 0
    assert int8_tables.shrink(network()) == 1


def test_rows_of_a_table_keep_their_own_scale():
    model = network()
    table = next(tensor for tensor in model.graph.initializer if tensor.name == "table")
    values = numpy_helper.to_array(table) * np.logspace(-3, 3, 1000, dtype=np.float32)[:, None]
    table.CopyFrom(numpy_helper.from_array(values, "table"))
    for node in list(model.graph.node)[1:]:
        model.graph.node.remove(node)
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["batch", "sequence", 64]))
    expected = answer(model)
    int8_tables.shrink(model)
    got = answer(model)
    for row, wanted in zip(got.reshape(-1, 64), expected.reshape(-1, 64), strict=True):
        assert cosine(row, wanted) > 0.9999


def test_a_model_without_constant_matrices_is_refused(tmp_path, make_context):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 4]) for name in ("a", "b", "y")]
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["y"])], "g", values[:2], values[2:])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "model.onnx"
    )
    with pytest.raises(ConversionFailed, match="no MatMul by a constant float32 weight"):
        onnx_weights.convert(make_context("onnx_int4_weights", tmp_path / "model.onnx", Format.ONNX))
