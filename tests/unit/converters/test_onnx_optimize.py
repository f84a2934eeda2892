from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from converters import onnx_file, onnx_optimize
from schemas.descriptor import Format
from schemas.errors import ConversionFailed, ModelFailed


def network(opset: int = 17, width: int = 8, layers: int = 1, batch: int | str = "batch") -> onnx.ModelProto:
    """x -> (MatMul, Add, Relu) * layers -> Identity -> y, with a second input that is added at the end."""
    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for layer in range(layers):
        weights += [
            numpy_helper.from_array(rng.standard_normal((width, width)).astype(np.float32) / 3, f"w{layer}"),
            numpy_helper.from_array(rng.standard_normal(width).astype(np.float32), f"b{layer}"),
        ]
        nodes += [
            helper.make_node("MatMul", [last, f"w{layer}"], [f"m{layer}"]),
            helper.make_node("Add", [f"m{layer}", f"b{layer}"], [f"a{layer}"]),
            helper.make_node("Relu", [f"a{layer}"], [f"r{layer}"]),
        ]
        last = f"r{layer}"
    nodes += [helper.make_node("Identity", [last], ["same"]), helper.make_node("Add", ["same", "extra"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "network",
        [
            helper.make_tensor_value_info("extra", TensorProto.FLOAT, [batch, width]),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, width]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, width])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def write(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path


def reference(model: onnx.ModelProto, feeds):
    from onnx.reference import ReferenceEvaluator

    return dict(zip([o.name for o in model.graph.output], ReferenceEvaluator(model).run(None, feeds), strict=True))


def feeds(batch: int, width: int = 8) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {name: rng.standard_normal((batch, width)).astype(np.float32) for name in ("x", "extra")}


@pytest.mark.parametrize("level", ["basic", "extended"])
def test_names_order_axes_and_answers_stay(tmp_path, make_context, run_onnx, level):
    model = network()
    path = write(model, tmp_path / "any-name.bin")
    context = make_context("onnx_optimize", path, Format.ONNX, options={"level": level})
    report = onnx_optimize.convert(context).report

    assert [item.name for item in report.inputs] == ["extra", "x"]
    assert [item.shape for item in (*report.inputs, *report.outputs)] == [("batch", 8)] * 3
    assert sum(report.operators.values()) < len(model.graph.node)
    given = feeds(5)
    np.testing.assert_allclose(run_onnx(context, given)["y"], reference(model, given)["y"], atol=1e-5)


def test_an_old_opset_is_raised(tmp_path, make_context, run_onnx):
    model = network(opset=11)
    context = make_context("onnx_optimize", write(model, tmp_path / "old.onnx"), Format.ONNX)
    report = onnx_optimize.convert(context).report
    assert report.opset == 17
    assert "The opset was raised from 11 to 17." in report.notes
    given = feeds(3)
    np.testing.assert_allclose(run_onnx(context, given)["y"], reference(model, given)["y"], atol=1e-5)


def test_an_opset_that_cannot_be_raised_is_kept_with_a_note(tmp_path, make_context):
    model = network(opset=11)
    model.graph.node[2].CopyFrom(helper.make_node("Gelu", ["a0"], ["r0"], domain="com.microsoft"))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    context = make_context("onnx_optimize", write(model, tmp_path / "old.onnx"), Format.ONNX)
    report = onnx_optimize.convert(context).report
    assert any(note.startswith(("Opset 11 was kept", "The opset was raised")) for note in report.notes)


def test_weights_that_are_no_inputs_of_an_old_file_keep_no_opset_back(tmp_path, make_context, run_onnx):
    model = network(opset=8)
    model.ir_version = 3  # whose rules want every weight among the inputs, which onnxruntime never asks for
    context = make_context("onnx_optimize", write(model, tmp_path / "old.onnx"), Format.ONNX)
    assert "The opset was raised from 8 to 17." in onnx_optimize.convert(context).report.notes
    x = feeds(3)
    np.testing.assert_allclose(run_onnx(context, x)["y"], reference(network(opset=8), x)["y"], atol=1e-5)


def test_what_the_converter_refuses_in_its_own_way_is_a_reason_too():
    assert issubclass(onnx.version_converter.ConvertError, onnx_optimize._converter_errors())


def test_an_opset_above_the_server_s_is_lowered(tmp_path, make_context, run_onnx):
    model = network(opset=23)
    context = make_context("onnx_optimize", write(model, tmp_path / "new.onnx"), Format.ONNX)
    report = onnx_optimize.convert(context).report
    assert report.opset == 21
    assert "The opset was lowered from 23 to 21." in report.notes
    x = feeds(3)
    assert np.allclose(run_onnx(context, x)["y"], reference(network(opset=20), x)["y"], atol=1e-5)


def test_an_ir_version_above_the_server_s_is_lowered_where_nothing_is_newer(tmp_path):
    model = network()
    model.ir_version = 13
    assert onnx.load(onnx_file.save(model, tmp_path / "lowered")).ir_version == 10
    model.ir_version = 13
    model.graph.value_info.append(helper.make_tensor_value_info("four", TensorProto.FLOAT4E2M1, [1]))
    assert onnx.load(onnx_file.save(model, tmp_path / "kept")).ir_version == 13


def test_a_newer_opset_is_left_alone(tmp_path, make_context):
    context = make_context("onnx_optimize", write(network(opset=20), tmp_path / "new.onnx"), Format.ONNX)
    assert onnx_optimize.convert(context).report.opset == 20


def test_nothing_in_the_result_is_tied_to_this_cpu(tmp_path, make_context):
    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.standard_normal((16, 3, 3, 3)).astype(np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Relu", ["c"], ["y"])],
        "conv",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 16, 6, 6])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    context = make_context("onnx_optimize", write(model, tmp_path / "conv.onnx"), Format.ONNX)
    report = onnx_optimize.convert(context).report
    saved = onnx.load(context.out / "model" / "model.onnx")
    assert not any("nchwc" in name.lower() for name in report.operators)
    assert {entry.domain for entry in saved.opset_import} <= {"", "com.microsoft"}


def test_weights_in_a_file_beside_the_model_are_found(tmp_path, make_context, run_onnx):
    model = network(width=64)
    folder = tmp_path / "folder"
    folder.mkdir()
    onnx.save(model, folder / "network.onnx", save_as_external_data=True, location="weights.bin", size_threshold=100)
    context = make_context("onnx_optimize", folder, Format.ONNX, descriptor={"entry": "network.onnx"})
    report = onnx_optimize.convert(context).report
    assert report.size_bytes > 64 * 64 * 4
    given = feeds(2, 64)
    np.testing.assert_allclose(run_onnx(context, given)["y"], reference(network(width=64), given)["y"], atol=1e-4)


def test_big_weights_are_written_beside_the_model(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "INLINE_BYTES", 1000)
    file = onnx_file.save(network(width=64), tmp_path / "model")
    assert sorted(path.name for path in file.parent.iterdir()) == ["model.onnx", "model.onnx.data"]
    onnx_file.check(onnx_file.load(file))
    assert onnx_file.session(file).get_inputs()[0].name == "extra"


def test_a_big_model_is_optimised_with_its_weights_beside_it(tmp_path, make_context, run_onnx, monkeypatch):
    monkeypatch.setattr(onnx_file, "INLINE_BYTES", 1000)
    model = network(width=64)
    context = make_context("onnx_optimize", write(model, tmp_path / "big.onnx"), Format.ONNX)
    onnx_optimize.convert(context)
    assert sorted(path.name for path in (context.out / "model").iterdir()) == ["model.onnx", "model.onnx.data"]
    given = feeds(2, 64)
    np.testing.assert_allclose(run_onnx(context, given)["y"], reference(network(width=64), given)["y"], atol=1e-4)


@pytest.mark.parametrize("content", [b"", b"this is no model at all"], ids=["empty", "text"])
def test_a_file_that_is_no_model_is_refused(tmp_path, make_context, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelFailed):
        onnx_optimize.convert(make_context("onnx_optimize", path, Format.ONNX))


def test_an_operator_that_onnxruntime_does_not_have_is_named(tmp_path, make_context):
    model = network()
    model.graph.node[2].CopyFrom(helper.make_node("Frobnicate", ["a0"], ["r0"], domain="my.company"))
    model.opset_import.append(helper.make_opsetid("my.company", 1))
    with pytest.raises(ConversionFailed, match="Frobnicate"):
        onnx_optimize.convert(make_context("onnx_optimize", write(model, tmp_path / "custom.onnx"), Format.ONNX))


def test_a_folder_with_two_models_and_no_entry_asks_for_one(tmp_path):
    for name in ("a.onnx", "b.onnx"):
        write(network(), tmp_path / name)
    with pytest.raises(ModelFailed, match=r"2 ONNX files \(a.onnx, b.onnx\)"):
        onnx_file.find(tmp_path)


def test_weights_that_old_files_list_as_inputs_are_folded_like_others(tmp_path, make_context, run_onnx):
    model = network(opset=8)
    model.ir_version = 3
    for name, shape in (("w0", [8, 8]), ("b0", [8])):
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    context = make_context("onnx_optimize", write(model, tmp_path / "old.onnx"), Format.ONNX)
    report = onnx_optimize.convert(context).report
    assert [spec.name for spec in report.inputs] == ["extra", "x"]
    x = feeds(3)
    assert np.allclose(run_onnx(context, x)["y"], reference(network(), x)["y"], atol=1e-5)


def test_an_output_without_a_declared_type_gets_the_one_of_its_operator(tmp_path, make_context):
    model = network()
    model.graph.output[0].ClearField("type")
    context = make_context("onnx_optimize", write(model, tmp_path / "bare.onnx"), Format.ONNX)
    assert onnx_optimize.convert(context).report.outputs[0].dtype == "float32"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("[ONNXRuntimeError] : 1 : FAIL : Load model from /step/in/model failed:Fatal error: x is not a function",
         "Fatal error: x is not a function"),
        ("[ONNXRuntimeError] : 1 : FAIL : Load model from /a/b.onnx failed:/onnxruntime_src/core/model.cc:256 "
         "onnxruntime::Model::Model(onnx::ModelProto&&, const f(int)&) Unsupported model IR version: 14, max 13\n",
         "Unsupported model IR version: 14, max 13"),
        ("[ONNXRuntimeError] : 6 : X : Exception during initialization: /onnxruntime_src/a/n.cc:235 "
         "onnxruntime::Locale::Locale(const std::string&)::<lambda()> Failed to construct locale with name:en_US",
         "Exception during initialization: Failed to construct locale with name:en_US"),
    ],
)  # fmt: skip
def test_a_reason_of_onnxruntime_is_told_without_paths_and_source_lines(said, told):
    assert onnx_file.reason(RuntimeError(said)) == told


def test_weights_in_a_hard_linked_file_are_read_as_the_store_links_all_files(tmp_path, make_context, run_onnx):
    import os

    model = network()
    folder = tmp_path / "folder"
    folder.mkdir()
    onnx.save_model(network(), folder / "net.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    os.link(folder / "w.bin", tmp_path / "another-name")
    context = make_context("onnx_optimize", folder, Format.ONNX)
    onnx_optimize.convert(context)
    x = feeds(3)
    assert np.allclose(run_onnx(context, x)["y"], reference(model, x)["y"], atol=1e-5)


def test_weights_outside_the_folder_are_refused(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    onnx.save_model(network(), folder / "net.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    (folder / "w.bin").rename(tmp_path / "w.bin")
    (folder / "w.bin").symlink_to(tmp_path / "w.bin")
    with pytest.raises(ModelFailed, match="not in the model's folder"):
        onnx_file.load(folder / "net.onnx")


def test_a_norm_without_a_mean_stays_a_graph_that_other_readers_take(tmp_path, make_context, run_onnx):
    """T5 and Llama have it; onnxruntime would fuse it to an operator under ONNX's name that ONNX does not have."""
    scale = numpy_helper.from_array(np.linspace(1, 2, 8).astype(np.float32), "scale")
    constants = [
        numpy_helper.from_array(np.array(2, np.float32), "two"),
        numpy_helper.from_array(np.array(1e-6, np.float32), "epsilon"),
        scale,
    ]
    nodes = [
        helper.make_node("Pow", ["x", "two"], ["square"]),
        helper.make_node("ReduceMean", ["square"], ["mean"], axes=[-1]),
        helper.make_node("Add", ["mean", "epsilon"], ["sum"]),
        helper.make_node("Sqrt", ["sum"], ["root"]),
        helper.make_node("Div", ["x", "root"], ["normed"]),
        helper.make_node("Mul", ["normed", "scale"], ["y"]),
    ]
    shown = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 8]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "norm", shown[:1], shown[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    context = make_context("onnx_optimize", write(model, tmp_path / "norm.onnx"), Format.ONNX)
    report = onnx_optimize.convert(context).report
    assert not any("SimplifiedLayerNormalization" in name for name in report.operators)
    x = {"x": feeds(3)["x"]}
    np.testing.assert_allclose(run_onnx(context, x)["y"], reference(model, x)["y"], atol=1e-5)


@given(st.lists(st.tuples(st.sampled_from([1, 7, 9, 10, 3]), st.lists(st.integers(1, 40), max_size=3)), max_size=6))
def test_a_models_size_is_told_without_writing_it(weights):
    tensors = [
        numpy_helper.from_array(np.zeros(shape, onnx.helper.tensor_dtype_to_np_dtype(kind)), f"w{number}")
        for number, (kind, shape) in enumerate(weights)
    ]
    constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.zeros(1000), "c"))
    model = helper.make_model(helper.make_graph([constant], "g", [], [], tensors))
    told, written = onnx_file.size_bytes(model), model.ByteSize()
    assert told <= written < told + 200 + 40 * len(tensors)
