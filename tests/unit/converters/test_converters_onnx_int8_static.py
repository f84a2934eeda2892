from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from converters import onnx_int8, onnx_int8_static, onnx_optimize
from converters.reference_cases import write_case, write_report
from schemas.descriptor import Format
from schemas.errors import ConversionFailed
from schemas.evidence import BatchProof, ReferenceCase, ReferenceReport
from schemas.precision import Precision
from schemas.target import TargetProfile, Tolerance


def array(name: str, *shape: int, size: float = 1.0) -> onnx.TensorProto:
    rng = np.random.default_rng(len(name) + shape[0])
    fan = int(np.prod(shape[1:])) or 1
    return numpy_helper.from_array((size * rng.standard_normal(shape) / np.sqrt(fan)).astype(np.float32), name)


def value(name: str, shape) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def conv_net(opset: int = 17) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["image", "k1", "b1"], ["c1"], pads=[1, 1, 1, 1], name="first"),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "k2"], ["c2"], pads=[1, 1, 1, 1], name="second"),
        helper.make_node("Add", ["c2", "r1"], ["a2"]),
        helper.make_node("Relu", ["a2"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "b"], ["scores"], name="head"),
    ]
    weights = [array("k1", 16, 3, 3, 3), array("b1", 16), array("k2", 16, 16, 3, 3), array("w", 16, 10), array("b", 10)]
    graph = helper.make_graph(
        nodes, "net", [value("image", ["batch", 3, 16, 16])], [value("scores", ["batch", 10])], weights
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def outlier_net() -> onnx.ModelProto:
    """Three matrices; what enters the second has one column a thousand times the others, and that column is unused."""
    second = numpy_helper.to_array(array("w2", 32, 32)).copy()
    second[0] = 0
    wide = np.ones(32, np.float32)
    wide[0] = 3000
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h1"], name="first"),
        helper.make_node("Mul", ["h1", "wide"], ["m1"], name="widen"),
        helper.make_node("MatMul", ["m1", "w2"], ["h2"], name="second"),
        helper.make_node("Tanh", ["h2"], ["t2"]),
        helper.make_node("MatMul", ["t2", "w3"], ["y"], name="third"),
    ]
    weights = [
        array("w1", 32, 32),
        numpy_helper.from_array(wide, "wide"),
        numpy_helper.from_array(second, "w2"),
        array("w3", 32, 32),
    ]
    graph = helper.make_graph(nodes, "net", [value("x", ["batch", 32])], [value("y", ["batch", 32])], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def reference(folder: Path, model: onnx.ModelProto, make_spec, rows: int = 24, source: str = "sidecar") -> Path:
    """A reference folder of one real case, as the reference step writes it."""
    folder.mkdir()
    inputs = model.graph.input[0]
    shape = [dim.dim_value for dim in inputs.type.tensor_type.shape.dim][1:]
    feeds = {inputs.name: np.random.default_rng(3).standard_normal((rows, *shape)).astype(np.float32)}
    outputs = run(model, feeds)
    case = ReferenceCase(id="samples", source=source, axes={"batch": rows}, traced=True, rows=rows)
    write_case(folder, case, feeds, outputs)
    specs = tuple(make_spec(name, ("batch", *given.shape[1:])) for name, given in outputs.items())
    write_report(folder, ReferenceReport(cases=(case,), outputs=specs, batching=BatchProof(holds=True, reason="x")))
    return folder


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b)))


@pytest.fixture
def static(tmp_path, make_context, make_spec):
    """Return how to make the context of a step for ``model`` with a reference of its own outputs."""
    count = 0

    def make(model, *, kind="onnx_int8_static", target=None, path=None, source="sidecar", **options):
        nonlocal count
        count += 1
        if path is None:
            path = tmp_path / f"model-{count}.onnx"
            onnx.save(model, path)
        folder = reference(tmp_path / f"reference-{count}", model, make_spec, source=source)
        shown = model.graph.input[0]
        shape = ("batch", *(dim.dim_value for dim in shown.type.tensor_type.shape.dim[1:]))
        context = make_context(
            kind, path, Format.ONNX, inputs=[make_spec(shown.name, shape)], options=options, reference=folder
        )
        context.request = context.request.model_copy(update={"target": target})
        return context

    return make


@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile"])
def test_a_conv_net_runs_in_int8_and_answers_nearly_the_same(static, run_onnx, method):
    model = conv_net()
    context = static(model, method=method, max_samples=16)
    report = onnx_int8_static.convert(context).report
    x = np.random.default_rng(9).standard_normal((5, 3, 16, 16)).astype(np.float32)
    assert cosine(run_onnx(context, {"image": x})["scores"], run(model, {"image": x})["scores"]) > 0.99
    assert report.notes[0].startswith("3 of 3 convolutions and matrix multiplications run in int8")
    assert "on 16 rows of real inputs" in report.notes[0]
    assert report.inputs[0].shape == ("batch", 3, 16, 16)
    assert [spec.dtype for spec in (*report.inputs, *report.outputs)] == ["float32", "float32"]


def test_the_outputs_of_the_model_itself_are_not_rounded(static):
    context = static(conv_net())
    onnx_int8_static.convert(context)
    saved = onnx.load(context.out / "model" / "model.onnx")
    assert next(node for node in saved.graph.node if "scores" in node.output).op_type == "Gemm"


def test_activations_are_unsigned_and_weights_have_a_scale_per_channel(static):
    context = static(conv_net())
    onnx_int8_static.convert(context)
    saved = onnx.load(context.out / "model" / "model.onnx")
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in saved.graph.initializer}
    zeros = [weights[node.input[2]] for node in saved.graph.node if node.op_type == "QuantizeLinear"]
    assert {zero.dtype.name for zero in zeros} == {"uint8"}
    kernel = next(node for node in saved.graph.node if node.op_type == "DequantizeLinear" and "k2" in node.input[0])
    assert weights[kernel.input[0]].dtype == np.int8
    assert weights[kernel.input[1]].shape == (16,)


def test_a_graph_that_onnxruntime_fused_is_taken_apart_first(tmp_path, make_context, static, run_onnx):
    model = conv_net()
    onnx.save(model, tmp_path / "plain.onnx")
    first = make_context("onnx_optimize", tmp_path / "plain.onnx", Format.ONNX)
    fused = onnx_optimize.convert(first).report
    assert fused.operators["com.microsoft::FusedConv"] >= 1
    context = static(model, path=first.out / "model" / "model.onnx")
    report = onnx_int8_static.convert(context).report
    assert not any("FusedConv" in name for name in report.operators)
    assert report.notes[0].startswith("3 of 3 convolutions")
    x = np.random.default_rng(9).standard_normal((5, 3, 16, 16)).astype(np.float32)
    assert cosine(run_onnx(context, {"image": x})["scores"], run(model, {"image": x})["scores"]) > 0.99


def test_random_inputs_are_called_random(static):
    report = onnx_int8_static.convert(static(conv_net(), source="random")).report
    assert "rows of random inputs" in report.notes[0]


def test_without_inputs_there_is_nothing_to_calibrate_on(tmp_path, make_context):
    onnx.save(conv_net(), tmp_path / "model.onnx")
    with pytest.raises(ConversionFailed, match="no inputs to calibrate on"):
        onnx_int8_static.convert(make_context("onnx_int8_static", tmp_path / "model.onnx", Format.ONNX))


def test_a_model_without_matrices_or_convolutions_is_refused(static):
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "g", [value("x", ["batch", 4])], [value("y", ["batch", 4])]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(ConversionFailed, match="no convolution or matrix multiplication"):
        onnx_int8_static.convert(static(model))


@pytest.mark.parametrize(
    ("kind", "convert"), [("onnx_int8_static", onnx_int8_static.convert), ("onnx_int8", onnx_int8.convert)]
)
def test_the_node_that_may_not_be_quantised_is_found_and_named(static, run_onnx, kind, convert):
    model = outlier_net()
    context = static(model, kind=kind)
    report = convert(context).report
    x = np.random.default_rng(3).standard_normal((24, 32)).astype(np.float32)
    assert cosine(run_onnx(context, {"x": x})["y"], run(model, {"x": x})["y"]) > 0.98
    text = " ".join(report.notes)
    assert "misses the tolerance" in text
    assert "it passes" in text
    assert "because they bring most error for their size (1 - cosine when quantised alone): second" in text
    saved = onnx.load(context.out / "model" / "model.onnx")
    second = next(node for node in saved.graph.node if node.name == "second")
    assert second.op_type == "MatMul"
    assert second.input[1] == "w2"


def test_one_trial_is_no_search(static):
    report = onnx_int8.convert(static(outlier_net(), kind="onnx_int8", search_trials=1)).report
    assert any("was not asked for" in note for note in report.notes)


def test_a_target_with_a_wide_tolerance_needs_no_search(static):
    wide = TargetProfile(tolerances={Precision.INT8: Tolerance(min_cosine=0.9)})
    report = onnx_int8_static.convert(static(conv_net(), target=wide)).report
    assert len(report.notes) == 1


def test_a_target_that_nothing_meets_still_gets_the_best_model(static):
    narrow = TargetProfile(tolerances={Precision.INT8: Tolerance(min_cosine=1.0)})
    report = onnx_int8_static.convert(static(conv_net(), target=narrow, search_trials=3)).report
    assert any("misses" in note for note in report.notes)


@pytest.mark.parametrize(("kind", "convert"), [("onnx_int8_static", onnx_int8_static), ("onnx_int8", onnx_int8)])
def test_seven_bits_are_multiplied_right_on_every_cpu(static, run_onnx, kind, convert):
    """All values are large: where the CPU adds two products in 16 bits, those with eight bits overflow."""
    weights = [numpy_helper.from_array(np.ones((64, 64), np.float32), "w")]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="only")]
    graph = helper.make_graph(nodes, "net", [value("x", ["batch", 64])], [value("y", ["batch", 64])], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    context = static(model, kind=kind, reduce_range=True, search_trials=1)
    convert.convert(context)
    x = np.full((3, 64), 2.5, np.float32)
    assert run_onnx(context, {"x": x})["y"] == pytest.approx(run(model, {"x": x})["y"], rel=0.02)
