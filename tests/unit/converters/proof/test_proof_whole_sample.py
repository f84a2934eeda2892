"""Models whose inputs have no rows in common are run on a person's sample as it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from converters.arrays import load
from schemas.descriptor import Format
from schemas.errors import ModelFailed


def _save(path: Path, nodes: list[onnx.NodeProto], inputs: list[tuple[str, int, list[int | str]]], output: int) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs],
        [helper.make_tensor_value_info("y", output, None)],
    )
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def reshape(tmp_path: Path) -> Path:
    inputs = [("x", TensorProto.FLOAT, [2, 3, 4]), ("shape", TensorProto.INT64, [2])]
    return _save(
        tmp_path / "reshape.onnx", [helper.make_node("Reshape", ["x", "shape"], ["y"])], inputs, TensorProto.FLOAT
    )


def test_a_shape_that_comes_in_as_an_input_is_held_at_the_samples(tell, reshape: Path) -> None:  # type: ignore[no-untyped-def]
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    story = tell(reshape, Format.ONNX, samples={"x": x, "shape": np.array([6, 4])})
    story.probe()
    report = story.reference()
    assert [spec.shape for spec in story.descriptor.outputs] == [(6, 4)]
    kept = load(story.reference_folder / "samples.outputs.npz")["y"]
    np.testing.assert_array_equal(kept, x.reshape(6, 4))
    assert {case.id for case in report.cases} >= {"trace", "samples"}
    drawn = load(story.reference_folder / "trace.inputs.npz")
    assert drawn["shape"].tolist() == [6, 4] and not np.array_equal(drawn["x"], x), "floats are still drawn"
    assert story.parity(reshape).passed


def test_without_a_sample_the_hint_says_to_give_one(tell, reshape: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ModelFailed) as caught:
        tell(reshape, Format.ONNX).probe()
    assert "samples" in caught.value.hint


def test_a_scalar_and_a_threshold_are_samples_too(tell, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    inputs = [("x", TensorProto.FLOAT, ["n", 3]), ("low", TensorProto.FLOAT, []), ("high", TensorProto.FLOAT, [])]
    model = _save(
        tmp_path / "clip.onnx", [helper.make_node("Clip", ["x", "low", "high"], ["y"])], inputs, TensorProto.FLOAT
    )
    sample = {"x": np.ones((4, 3), np.float32), "low": np.float32(-0.5), "high": np.float32(0.5)}
    story = tell(model, Format.ONNX, samples=sample)
    story.probe()
    story.reference()
    assert story.descriptor.inputs[1].shape == ()
    np.testing.assert_array_equal(load(story.reference_folder / "samples.outputs.npz")["y"], np.full((4, 3), 0.5))


def test_rows_of_a_sample_stay_rows(tell, write_linear: Path) -> None:  # type: ignore[no-untyped-def]
    story = tell(write_linear, Format.ONNX, samples={"x": np.ones((5, 3), np.float32)})
    story.probe()
    story.reference()
    assert story.descriptor.inputs[0].shape == ("batch", 3)
    assert load(story.reference_folder / "samples.outputs.npz")["y"].shape == (5, 3)


@pytest.fixture
def write_linear(tmp_path: Path) -> Path:
    inputs = [("x", TensorProto.FLOAT, ["batch", 3])]
    return _save(tmp_path / "tanh.onnx", [helper.make_node("Tanh", ["x"], ["y"])], inputs, TensorProto.FLOAT)


def test_bfloat16_goes_in_and_comes_out(tell, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    inputs = [("x", TensorProto.BFLOAT16, ["batch", 3])]
    model = _save(tmp_path / "half.onnx", [helper.make_node("Identity", ["x"], ["y"])], inputs, TensorProto.BFLOAT16)
    x = np.array([[1.0, 1.00390625, np.nan], [3.3895314e38, -2.5, 0.0]], np.float32)
    story = tell(model, Format.ONNX, samples={"x": x})
    story.probe()
    story.reference()
    given = load(story.reference_folder / "samples.outputs.npz")["y"]
    # 1.00390625 lies halfway between two neighbours: ties go to the even one.
    np.testing.assert_array_equal(given, np.array([[1.0, 1.0, np.nan], [3.3895314e38, -2.5, 0.0]], np.float32))
