"""Operators that came after what the target loads are written out, or named."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from converters import onnx_file
from converters.onnx_lowering import lower
from schemas.errors import ConversionFailed


def _model(nodes: list[onnx.NodeProto], inputs: list[str], shape: list[int | str], *, opset: int) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "newer",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def test_attention_is_written_out_in_older_operators_and_gives_the_same(tmp_path: Path) -> None:
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"])
    newer = _model([node], ["q", "k", "v"], [2, 3, 5, 8], opset=23)
    lowered = lower(newer, 21)
    assert onnx_file.opset(lowered) == 21
    assert "Attention" not in onnx_file.operators(lowered)
    onnx.checker.check_model(lowered)
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal((2, 3, 5, 8)).astype(np.float32) for name in "qkv"}
    before = onnx_file.run(onnx_file.session(newer.SerializeToString()), feeds)["y"]
    after = onnx_file.run(onnx_file.session(lowered.SerializeToString()), feeds)["y"]
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)
    assert [entry.version for entry in newer.opset_import] == [23], "the given model stays as it was"


def test_an_operator_whose_newer_version_only_takes_more_types_is_marked_older() -> None:
    newer = _model([helper.make_node("GlobalMaxPool", ["x"], ["y"])], ["x"], [1, 3, 4, 4], opset=22)
    del newer.graph.output[0].type.tensor_type.shape.dim[2:]
    newer.graph.output[0].type.tensor_type.shape.dim.add(dim_value=1)
    newer.graph.output[0].type.tensor_type.shape.dim.add(dim_value=1)
    lowered = lower(newer, 21)
    opened = onnx_file.session(lowered.SerializeToString())
    x = np.arange(48, dtype=np.float32).reshape(1, 3, 4, 4)
    np.testing.assert_array_equal(onnx_file.run(opened, {"x": x})["y"].ravel(), [15, 31, 47])


def _backend_tests(*operators: str) -> list[Any]:
    """Return ONNX's own tests of these operators."""
    from onnx.backend.test import loader

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [case for case in loader.load_model_tests(kind="node") if case.model is not None]
    return [
        pytest.param(case, id=case.name)
        for case in found
        if any(node.op_type in operators for node in case.model.graph.node)
    ]


@pytest.mark.parametrize("case", _backend_tests("CumProd", "TensorScatter"))
def test_an_older_form_gives_what_onnx_itself_expects(case: Any) -> None:
    lowered = lower(case.model, 21)
    assert not {"CumProd", "TensorScatter"} & set(onnx_file.operators(lowered))
    onnx.checker.check_model(lowered, full_check=True)
    opened = onnx_file.session(lowered.SerializeToString())
    names = [value.name for value in lowered.graph.input]
    for inputs, outputs in case.data_sets:
        given = onnx_file.run(opened, dict(zip(names, inputs, strict=True)))
        for value, wanted in zip(lowered.graph.output, outputs, strict=True):
            np.testing.assert_array_equal(given[value.name], wanted, strict=True)


@pytest.mark.parametrize("axis", [-1, -2, 1, 2])
@pytest.mark.parametrize("mode", ["linear", "circular"])
def test_a_cache_of_any_rank_is_written_at_any_axis(axis: int, mode: str) -> None:
    from onnx.reference import ReferenceEvaluator

    rng = np.random.default_rng(0)
    past, update = (rng.standard_normal((2, 4, 5, 6)).astype(np.float32) for _ in range(2))
    length = past.shape[axis]
    update = np.take(update, range(length - 1), axis)
    begins = np.array([1, length - 1 if mode == "circular" else 0], np.int64)
    values = [
        helper.make_tensor_value_info("past", TensorProto.FLOAT, [None] * 4),
        helper.make_tensor_value_info("update", TensorProto.FLOAT, [None] * 4),
        helper.make_tensor_value_info("begins", TensorProto.INT64, [None]),
    ]
    node = helper.make_node("TensorScatter", ["past", "update", "begins"], ["present"], axis=axis, mode=mode)
    outputs = [helper.make_tensor_value_info("present", TensorProto.FLOAT, [None] * 4)]
    graph = helper.make_graph([node], "cache", values, outputs)
    newer = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10)
    feeds = {"past": past, "update": update, "begins": begins}
    given = onnx_file.run(onnx_file.session(lower(newer, 21).SerializeToString()), feeds)["present"]
    np.testing.assert_array_equal(given, ReferenceEvaluator(newer).run(None, feeds)[0])


def test_a_product_inside_a_branch_is_written_out_there() -> None:
    body = helper.make_graph(
        [helper.make_node("CumProd", ["x", "axis"], ["inner"], exclusive=1, reverse=1)],
        "then",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
    )
    other = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["outer"])], "else", [], [helper.make_tensor_value_info("outer", 1, None)]
    )
    nodes = [
        helper.make_node("Constant", [], ["axis"], value_int=-1),
        helper.make_node("ReduceMin", ["x"], ["least"], keepdims=0),
        helper.make_node("Constant", [], ["zero"], value_float=0.0),
        helper.make_node("Greater", ["least", "zero"], ["above"]),
        helper.make_node("If", ["above"], ["y"], then_branch=body, else_branch=other),
    ]
    lowered = lower(_model(nodes, ["x"], ["batch", 4], opset=26), 21)
    given = onnx_file.run(
        onnx_file.session(lowered.SerializeToString()), {"x": np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32)}
    )
    np.testing.assert_array_equal(given["y"], [[24, 12, 4, 1], [336, 56, 8, 1]])


@pytest.mark.parametrize("pair", [("uint32", "int32"), ("int64", "uint64"), ("int8", "uint8"), ("bool", "uint8")])
def test_whole_numbers_keep_their_bits(pair: tuple[str, str]) -> None:
    source, wanted = (helper.np_dtype_to_tensor_dtype(np.dtype(name)) for name in pair)
    newer = _bitcast(source, wanted)
    if pair[0] == "bool":
        x = np.array([True, False])
    else:
        limits = np.iinfo(pair[0])
        x = np.array([limits.min, limits.max, 0, 1, limits.max // 2 + 1], pair[0])
    given = onnx_file.run(onnx_file.session(lower(newer, 21).SerializeToString()), {"x": x})["y"]
    np.testing.assert_array_equal(given, x.view(pair[1]), strict=True)


@pytest.mark.parametrize("pair", [("float32", "int32"), ("int64", "float64"), ("uint8", "bool")])
def test_an_operator_without_an_older_form_is_named(pair: tuple[str, str]) -> None:
    newer = _bitcast(*(helper.np_dtype_to_tensor_dtype(np.dtype(name)) for name in pair))
    with pytest.raises(ConversionFailed, match=r"The operator BitCast came after opset 21.*nothing older") as caught:
        lower(newer, 21)
    assert "older opset" in caught.value.hint


def _bitcast(source: int, wanted: int) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("BitCast", ["x"], ["y"], to=wanted)],
        "bits",
        [helper.make_tensor_value_info("x", source, [None])],
        [helper.make_tensor_value_info("y", wanted, [None])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 26)], ir_version=10)
