"""Models without the bytes of their weights, and models written piece by piece."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from converters import onnx_file
from converters.onnx_skeleton import BIG_ELEMENTS, skeleton, write
from schemas.errors import ConversionFailed


def _model(size: int = BIG_ELEMENTS) -> onnx.ModelProto:
    shape = numpy_helper.from_array(np.array([-1, 2], np.int64), "shape")
    typed = helper.make_tensor("typed", TensorProto.FLOAT, [2], [1.0, 2.0])  # in float_data, not in bytes
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["x", "w"], ["h"]),
            helper.make_node("Reshape", ["h", "shape"], ["r"]),
            helper.make_node("Mul", ["r", "typed"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", None])],
        [numpy_helper.from_array(np.arange(size, dtype=np.float32), "w"), shape, typed],
        doc_string="a graph",
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="pytest")
    helper.set_model_props(model, {"task": "none"})
    return model


@given(st.integers(0, 70_000), st.text(max_size=5), st.lists(st.binary(max_size=200), max_size=3))
def test_what_is_written_piece_by_piece_reads_as_the_same_model(size: int, name: str, others: list[bytes]) -> None:
    import tempfile

    model = _model(size)
    model.graph.initializer[0].name = name
    for number, raw in enumerate(others):
        model.graph.initializer.add(name=f"o{number}", data_type=TensorProto.UINT8, dims=[len(raw)], raw_data=raw)
    with tempfile.TemporaryDirectory() as folder:
        write(model, Path(folder) / "m.onnx")
        written = onnx.load(Path(folder) / "m.onnx")
    assert written == model


def test_a_skeleton_keeps_what_is_small_and_the_shapes_of_the_rest() -> None:
    model = _model()
    light = skeleton(model)
    assert light.ByteSize() < 1000 < model.ByteSize()
    assert [tuple(tensor.dims) for tensor in light.graph.initializer] == [(BIG_ELEMENTS,), (2,), (2,)]
    onnx_file.tell_types(model)
    assert [dim.dim_value for dim in model.graph.output[0].type.tensor_type.shape.dim][1:] == [2]
    assert {value.name for value in model.graph.value_info} == {"h", "r"}
    assert len(model.graph.initializer[0].raw_data) == 4 * BIG_ELEMENTS, "its own weights stay"


def test_the_checker_finds_in_a_skeleton_what_is_wrong_with_the_graph() -> None:
    model = _model()
    onnx_file.check(model)
    model.graph.node[0].input[1] = "nowhere"
    with pytest.raises(ConversionFailed, match="not valid ONNX"):
        onnx_file.check(model)


def test_weights_in_a_file_beside_the_model_are_none_of_the_checker_s(tmp_path: Path) -> None:
    onnx.save_model(_model(), tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    model = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    onnx_file.check(model)
    write(model, tmp_path / "again.onnx")
    assert onnx.load(tmp_path / "again.onnx") == onnx.load(tmp_path / "m.onnx")
