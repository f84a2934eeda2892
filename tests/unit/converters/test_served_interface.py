"""Scalars and tensors that hold nothing, in the shapes that Triton carries."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from converters import onnx_file
from converters.served_interface import as_original, fed, holds_nothing, make_servable, same_rank
from schemas.descriptor import KnownBy, TensorSpec


def _model(
    nodes: list[onnx.NodeProto], inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _float(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def test_scalars_get_an_axis_of_one_under_their_own_names() -> None:
    model = _model(
        [
            helper.make_node("Mul", ["x", "factor"], ["scaled"]),
            helper.make_node("ReduceSum", ["scaled"], ["total"], keepdims=0),
        ],
        [_float("x", 3), _float("factor")],
        [_float("total")],
    )
    notes = make_servable(model)
    onnx.checker.check_model(model, full_check=True)
    inputs, outputs = onnx_file.model_specs(model)
    assert {spec.name: spec.shape for spec in (*inputs, *outputs)} == {"x": (3,), "factor": (1,), "total": (1,)}
    assert len(notes) == 2
    opened = onnx_file.session(model.SerializeToString())
    given = onnx_file.run(opened, {"x": np.ones(3, np.float32), "factor": np.float32(2).reshape(())})
    assert given["total"].tolist() == [6.0]
    assert as_original(given, {"total": np.float32(6).reshape(())})["total"].shape == ()
    assert make_servable(model) == (), "twice is once"


def test_a_scalar_used_inside_a_branch_is_renamed_there_too() -> None:
    then = helper.make_graph([helper.make_node("Add", ["x", "s"], ["r"])], "then", [], [_float("r", 2)])
    other = helper.make_graph([helper.make_node("Sub", ["x", "s"], ["r2"])], "other", [], [_float("r2", 2)])
    condition = helper.make_tensor_value_info("c", TensorProto.BOOL, ())
    model = _model(
        [helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)],
        [condition, _float("x", 2), _float("s")],
        [_float("y", 2)],
    )
    make_servable(model)
    opened = onnx_file.session(model.SerializeToString())
    x, s = np.array([1, 2], np.float32), np.array([1], np.float32)
    assert onnx_file.run(opened, {"c": np.array([True]), "x": x, "s": s})["y"].tolist() == [2.0, 3.0]
    assert onnx_file.run(opened, {"c": np.array([False]), "x": x, "s": s})["y"].tolist() == [0.0, 1.0]


def test_an_input_that_can_hold_nothing_becomes_part_of_the_graph() -> None:
    model = _model(
        [helper.make_node("Concat", ["x", "nothing"], ["y"], axis=0)],
        [_float("x", 2, 3), _float("nothing", 0, 3)],
        [_float("y", 2, 3)],
    )
    (note,) = make_servable(model)
    assert "nothing" in note
    assert [value.name for value in model.graph.input] == ["x"]
    opened = onnx_file.session(model.SerializeToString())
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    given = onnx_file.run(opened, {"x": x, "nothing": np.zeros((0, 3), np.float32)})
    np.testing.assert_array_equal(given["y"], x)


def test_an_answer_that_holds_nothing_is_declared_dynamic_and_so_is_what_it_is_made_of() -> None:
    number = helper.make_tensor_value_info("k", TensorProto.INT64, [1])
    model = _model(
        [helper.make_node("Concat", ["x", "x"], ["y"], axis=1), helper.make_node("Add", ["k", "k"], ["twice"])],
        [_float("x", 2, 0), number],
        [_float("y", 2, 0), helper.make_tensor_value_info("twice", TensorProto.INT64, [1])],
    )
    assert [note for note in make_servable(model) if "declared dynamic" in note] == [
        "Input 'x' has an axis of size 0; it is declared dynamic.",
        "Output 'y' has an axis of size 0; it is declared dynamic.",
    ]
    opened = onnx_file.session(model.SerializeToString())
    assert 0 not in [dim for value in (*opened.get_inputs(), *opened.get_outputs()) for dim in value.shape]
    given = onnx_file.run(opened, {"x": np.zeros((2, 0), np.float32), "k": np.array([2])})
    assert (given["y"].shape, given["twice"].tolist()) == ((2, 0), [4])


def test_a_model_that_triton_carries_as_it_is_stays_byte_for_byte() -> None:
    model = _model([helper.make_node("Relu", ["x"], ["y"])], [_float("x", "batch", 3)], [_float("y", "batch", 3)])
    before = model.SerializeToString(deterministic=True)
    assert make_servable(model) == ()
    assert model.SerializeToString(deterministic=True) == before


def test_ranks_and_feeds_know_the_axis_of_a_scalar() -> None:
    scalar = TensorSpec(name="s", dtype="float32", shape=(), known_by=KnownBy.PROBE)
    one = scalar.model_copy(update={"shape": (1,)})
    empty = scalar.model_copy(update={"shape": (0, 3)})
    assert same_rank(one, scalar) and same_rank(scalar, scalar) and not same_rank(scalar, one)
    assert holds_nothing(empty) and not holds_nothing(scalar)
    assert fed(np.float32(1).reshape(()), (1,)).shape == (1,)
    assert fed(np.ones(3), ("batch",)).shape == (3,)
