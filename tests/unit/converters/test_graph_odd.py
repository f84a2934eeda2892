"""Graphs that onnxruntime runs and checkers or writers stumble over."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from converters import graph_interface, onnx_file
from schemas.descriptor import KnownBy, TensorSpec


def _linear(*, sparse: bool, shaped: bool) -> onnx.ModelProto:
    weights = np.zeros((4, 3), np.float32)
    weights.reshape(-1)[[0, 5, 11]] = [1, 2, 3]
    values = numpy_helper.from_array(np.array([1, 2, 3], np.float32), "w")
    places = numpy_helper.from_array(np.array([0, 5, 11], np.int64), "w_places")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3] if shaped else None)],
        initializer=[] if sparse else [numpy_helper.from_array(weights, "w")],
        sparse_initializer=[helper.make_sparse_tensor(values, places, [4, 3])] if sparse else [],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_sparse_weights_become_plain_ones_with_the_same_numbers() -> None:
    model = _linear(sparse=True, shaped=True)
    assert graph_interface.make_dense(model)
    assert not graph_interface.make_dense(model), "twice is once"
    wanted = _linear(sparse=False, shaped=True)
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    given, expected = (onnx_file.run(onnx_file.session(m.SerializeToString()), {"x": x})["y"] for m in (model, wanted))
    np.testing.assert_array_equal(given, expected)


def test_places_of_sparse_weights_may_be_given_by_axis() -> None:
    model = _linear(sparse=True, shaped=True)
    by_axis = np.stack(np.unravel_index([0, 5, 11], (4, 3)), axis=1).astype(np.int64)
    model.graph.sparse_initializer[0].indices.CopyFrom(numpy_helper.from_array(by_axis, "w_places"))
    graph_interface.make_dense(model)
    assert numpy_helper.to_array(model.graph.initializer[0]).reshape(-1)[[0, 5, 11]].tolist() == [1, 2, 3]


def test_an_output_without_a_declared_shape_gets_the_one_that_running_told() -> None:
    model = _linear(sparse=False, shaped=False)
    told = TensorSpec(name="y", dtype="float32", shape=("batch", 3), known_by=KnownBy.PROBE)
    graph_interface.tell_shapes(model.graph.output, [told])
    onnx.checker.check_model(model)
    assert onnx_file.model_specs(model)[1][0].shape == ("batch", 3)
