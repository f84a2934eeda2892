"""Sequences, optional values and float8, as the plain tensors that they are served as."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from converters import onnx_file
from converters.onnx_runner import OnnxRunner
from converters.served_types import FLOAT8, make_plain
from schemas.errors import ModelFailed, Unsupported


def _float(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _sequence(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_sequence_value_info(name, TensorProto.FLOAT, shape)


def _optional(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    return helper.make_value_info(value.name, helper.make_optional_type_proto(value.type))


def _model(nodes: list[onnx.NodeProto], inputs: Any, outputs: Any, opset: int = 21) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def _as_original_and_plain(model: onnx.ModelProto, path: Path, feeds: dict[str, Any]) -> tuple[Any, Any]:
    onnx.save(model, path)
    original = OnnxRunner(path, fuse=False)
    assert make_plain(model)
    onnx.checker.check_model(model, full_check=True)
    inputs, outputs = onnx_file.model_specs(model)
    assert [(spec.name, spec.dtype) for spec in inputs] == [(spec.name, spec.dtype) for spec in original.inputs]
    assert [(spec.name, spec.dtype) for spec in outputs] == [(spec.name, spec.dtype) for spec in original.outputs]
    assert not make_plain(model), "twice is once"
    return original.run(feeds), onnx_file.run(onnx_file.session(model.SerializeToString()), feeds)


def test_a_sequence_is_one_tensor_with_the_number_of_its_tensors_in_front(tmp_path: Path) -> None:
    model = _model(
        [
            helper.make_node("SequenceInsert", ["parts", "last"], ["more"]),
            helper.make_node("SequenceLength", ["more"], ["length"]),
        ],
        [_sequence("parts", "N", 3), _float("last", "N", 3)],
        [_sequence("more", "N", 3), helper.make_tensor_value_info("length", TensorProto.INT64, ())],
    )
    parts, last = np.arange(12, dtype=np.float32).reshape(2, 2, 3), np.ones((2, 3), np.float32)
    original, plain = _as_original_and_plain(model, tmp_path / "m.onnx", {"parts": parts, "last": last})
    assert original["more"].shape == (3, 2, 3) and original["length"] == 3
    for name, array in original.items():
        np.testing.assert_array_equal(plain[name], array)
    assert OnnxRunner(tmp_path / "m.onnx").inputs[0].shape == ("parts_count", "N", 3)


def test_what_is_optional_is_always_there(tmp_path: Path) -> None:
    model = _model(
        [
            helper.make_node("OptionalGetElement", ["maybe"], ["x"]),
            helper.make_node("OptionalHasElement", ["maybe"], ["there"]),
            helper.make_node("Neg", ["x"], ["y"]),
            helper.make_node("SequenceConstruct", ["y", "y"], ["ys"]),
            helper.make_node("Optional", ["ys"], ["given"]),
        ],
        [_optional(_float("maybe", "batch", 2))],
        [
            _optional(_sequence("given", "batch", 2)),
            helper.make_tensor_value_info("there", TensorProto.BOOL, ()),
        ],
    )
    original, plain = _as_original_and_plain(model, tmp_path / "m.onnx", {"maybe": np.ones((1, 2), np.float32)})
    assert original["there"].item() is True and original["given"].tolist() == [[[-1, -1]], [[-1, -1]]]
    for name, array in original.items():
        np.testing.assert_array_equal(plain[name], array)


@pytest.mark.parametrize("code", FLOAT8)
def test_every_value_of_float8_goes_in_and_comes_out_as_float16(tmp_path: Path, code: int) -> None:
    model = _model(
        [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Cast", ["x"], ["z"], to=TensorProto.FLOAT)],
        [helper.make_tensor_value_info("x", code, ["n"])],
        [helper.make_tensor_value_info("y", code, ["n"]), _float("z", "n")],
    )
    values = np.arange(256, dtype=np.uint8).view(getattr(ml_dtypes, FLOAT8[code]))
    # ONNX's Cast makes infinities the largest number, here as in the graph.
    values = values[~np.isinf(values.astype(np.float32))]
    original, plain = _as_original_and_plain(model, tmp_path / "m.onnx", {"x": values.astype(np.float16)})
    for given in (original, plain):
        assert given["y"].dtype == np.float16
        np.testing.assert_array_equal(given["y"].astype(np.float32), values.astype(np.float32))
        np.testing.assert_array_equal(given["z"], values.astype(np.float32))


@pytest.mark.parametrize("code", FLOAT8)
def test_float16_is_rounded_to_float8_as_the_graph_rounds_it(tmp_path: Path, code: int) -> None:
    model = _model(
        [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)],
        [helper.make_tensor_value_info("x", code, ["n"])],
        [_float("y", "n")],
    )
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    original, plain = _as_original_and_plain(model, tmp_path / "m.onnx", {"x": every[np.isfinite(every)]})
    np.testing.assert_array_equal(original["y"], plain["y"])


def test_tensors_of_other_shapes_in_one_sequence_are_refused_by_name(tmp_path: Path) -> None:
    model = _model(
        [helper.make_node("SequenceConstruct", ["x", "longer"], ["ys"])],
        [_float("x", 2), _float("longer", 3)],
        [helper.make_tensor_sequence_value_info("ys", TensorProto.FLOAT, None)],
    )
    onnx.save(model, tmp_path / "m.onnx")
    feeds = {"x": np.zeros(2, np.float32), "longer": np.zeros(3, np.float32)}
    with pytest.raises(Unsupported, match="'ys' is a sequence that has tensors of different shapes"):
        OnnxRunner(tmp_path / "m.onnx").run(feeds)


def test_a_timed_run_of_types_that_numpy_lacks_goes_around_their_values(tmp_path: Path, monkeypatch: Any) -> None:
    def doubled(other: str) -> onnx.ModelProto:
        names = dict.fromkeys(("x", other))
        nodes = [helper.make_node("Cast", [name], [f"{name}_wide"], to=1) for name in names]
        nodes.append(helper.make_node("Add", ["x_wide", f"{other}_wide"], ["sum"]))
        nodes.append(helper.make_node("Cast", ["sum"], ["y"], to=TensorProto.BFLOAT16))
        takes = [helper.make_tensor_value_info(name, TensorProto.BFLOAT16, [f"{name}_size"]) for name in names]
        return _model(nodes, takes, [helper.make_tensor_value_info("y", TensorProto.BFLOAT16, ["n"])])

    onnx.save(doubled("x"), tmp_path / "m.onnx")
    onnx.save(doubled("z"), tmp_path / "two.onnx")
    feeds = {"x": np.array([1, 2], np.float32)}
    runner = OnnxRunner(tmp_path / "m.onnx")
    assert runner.run(feeds)["y"].tolist() == [2, 4]
    call = runner.bind(feeds)
    monkeypatch.setattr("converters.ort_values.run", None)
    assert call() is None, "what is timed leaves the outputs with onnxruntime"
    misfit = OnnxRunner(tmp_path / "two.onnx").bind(feeds | {"z": np.zeros(3, np.float32)})
    with pytest.raises(ModelFailed, match="could not run"):
        misfit()


def test_sequences_beside_types_that_numpy_lacks_are_refused(tmp_path: Path) -> None:
    model = _model(
        [helper.make_node("Cast", ["x"], ["wide"], to=1), helper.make_node("SequenceConstruct", ["wide"], ["ys"])],
        [helper.make_tensor_value_info("x", TensorProto.BFLOAT16, [2])],
        [_sequence("ys", 2)],
    )
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(Unsupported, match="sequences beside tensors"):
        OnnxRunner(tmp_path / "m.onnx")


def test_a_sequence_that_is_used_inside_a_loop_is_renamed_there_too(tmp_path: Path) -> None:
    body = helper.make_graph(
        [
            helper.make_node("SequenceAt", ["parts", "turn"], ["part"]),
            helper.make_node("Add", ["sum", "part"], ["next"]),
            helper.make_node("Identity", ["on"], ["still"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, ()),
            helper.make_tensor_value_info("on", TensorProto.BOOL, ()),
            _float("sum", 3),
        ],
        [helper.make_tensor_value_info("still", TensorProto.BOOL, ()), _float("next", 3)],
    )
    model = _model(
        [
            helper.make_node("SequenceLength", ["parts"], ["length"]),
            helper.make_node("Loop", ["length", "", "start"], ["total"], body=body),
        ],
        [_sequence("parts", 3), _float("start", 3)],
        [_float("total", 3)],
    )
    parts = np.arange(12, dtype=np.float32).reshape(4, 3)
    original, plain = _as_original_and_plain(
        model, tmp_path / "m.onnx", {"parts": parts, "start": np.zeros(3, np.float32)}
    )
    assert original["total"].tolist() == plain["total"].tolist() == parts.sum(0).tolist()


def test_plain_tensors_stay_byte_for_byte() -> None:
    model = _model([helper.make_node("Relu", ["x"], ["y"])], [_float("x", "batch", 3)], [_float("y", "batch", 3)])
    before = model.SerializeToString(deterministic=True)
    assert not make_plain(model)
    assert model.SerializeToString(deterministic=True) == before
