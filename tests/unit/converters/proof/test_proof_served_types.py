"""ONNX models whose tensors are served as others: from the probe to proven answers under the original's names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from converters import onnx_optimize
from converters.batching import fixed_rows
from converters.onnx_runner import OnnxRunner
from schemas.descriptor import Format, KnownBy, TensorSpec


def _save(path: Path, nodes: list[onnx.NodeProto], inputs: list[onnx.ValueInfoProto], output: int = 1) -> Path:
    given = helper.make_tensor_value_info("y", output, None)
    graph = helper.make_graph(nodes, "g", inputs, [given])
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def _proven(story, path: Path):  # type: ignore[no-untyped-def]
    """Return the parity report of what the optimiser makes of the model."""
    story.probe()
    story.reference()
    context = story.context("onnx_optimize", {}, model=path, reference=story.reference_folder)
    outcome = onnx_optimize.convert(context)
    report = story.parity(context.out / outcome.outputs["model"])
    assert report.passed, report.reason
    return report


def test_an_input_whose_shape_only_the_sidecar_tells_is_served_with_it(tell, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = _save(
        tmp_path / "m.onnx",
        [helper.make_node("Relu", ["x"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
    )
    story = tell(path, Format.ONNX, sidecar={"inputs": [{"name": "x", "shape": ["batch", "width", 3]}]})
    report = _proven(story, path)
    assert [(spec.name, spec.shape) for spec in report.inputs] == [("x", ("batch", "width", 3))]
    assert [spec.shape for spec in report.served_outputs] == [("batch", "width", 3)]


def test_a_sequence_is_proven_at_other_numbers_of_tensors(tell, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = _save(
        tmp_path / "m.onnx",
        [helper.make_node("ConcatFromSequence", ["parts"], ["y"], axis=0)],
        [helper.make_tensor_sequence_value_info("parts", TensorProto.FLOAT, ["N", 3])],
    )
    story = tell(path, Format.ONNX)
    report = _proven(story, path)
    assert [spec.shape[1:] for spec in report.inputs] == [("N", 3)]
    counts = {case.axes[str(report.inputs[0].shape[0])] for case in report.cases}
    assert len(counts) > 1, "an axis is proven at more than one size"


def test_float8_is_served_as_float16(tell, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = _save(
        tmp_path / "m.onnx",
        [helper.make_node("Cast", ["x"], ["wide"], to=1), helper.make_node("Neg", ["wide"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT8E4M3FN, ["batch", 3])],
    )
    story = tell(path, Format.ONNX)
    report = _proven(story, path)
    assert [(spec.dtype, spec.shape) for spec in report.inputs] == [("float16", ("batch", 3))]


@pytest.mark.parametrize("samples", [None, {"x": np.zeros((0, 2), np.float32)}])
def test_an_answer_that_holds_nothing_is_served_with_an_axis_that_may(tell, tmp_path: Path, samples) -> None:  # type: ignore[no-untyped-def]
    path = _save(
        tmp_path / "m.onnx",
        [helper.make_node("Neg", ["x"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [0, 2])],
    )
    story = tell(path, Format.ONNX, samples=samples)
    report = _proven(story, path)
    assert [spec.shape for spec in (*report.inputs, *report.served_outputs)] == [("x_0", 2), ("y_0", 2)]
    assert OnnxRunner(path).run({"x": np.zeros((0, 2), np.float32)})["y"].shape == (0, 2)


def test_a_model_of_no_rows_takes_no_fixed_number_of_them() -> None:
    def rows(count: int) -> TensorSpec:
        return TensorSpec(name="x", dtype="float32", shape=(count, 2), known_by=KnownBy.HEADER)

    assert fixed_rows((rows(4),)) == 4 and fixed_rows((rows(0),)) is None
