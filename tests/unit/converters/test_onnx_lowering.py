"""Operators that came after what the target loads are written out, or named."""

from __future__ import annotations

from pathlib import Path

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


def test_an_operator_without_an_older_form_is_named() -> None:
    nodes = [
        helper.make_node("Constant", [], ["axis"], value_int=1),
        helper.make_node("CumProd", ["x", "axis"], ["y"]),
    ]
    with pytest.raises(ConversionFailed, match=r"The operator CumProd came after opset 21.*older operators") as caught:
        lower(_model(nodes, ["x"], ["batch", 4], opset=26), 21)
    assert "older opset" in caught.value.hint
