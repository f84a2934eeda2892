"""ONNX files and folders: what the graph declares, external data, and what is refused."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

from analyzer import describe
from analyzer.onnx_values import batch_names
from schemas.descriptor import Format, KnownBy
from schemas.sidecar import Sidecar


def test_a_graph_tells_signature_operators_opset_parameters_and_flops(onnx_file, accepted):
    descriptor = accepted(onnx_file)

    assert descriptor.format is Format.ONNX
    assert [(s.name, s.dtype, s.shape) for s in descriptor.inputs] == [("x", "float32", ("batch", 3))]
    assert [(s.name, s.shape) for s in descriptor.outputs] == [("y", ("batch", 2))]
    assert descriptor.operators == {"Gemm": 1, "Relu": 1}
    assert (descriptor.opset, descriptor.producer) == (17, "pytest 1")
    assert (descriptor.parameter_count, descriptor.parameter_bytes) == (6, 24)
    assert descriptor.flops == 2 * 3 * 2


def test_initializers_listed_as_inputs_are_no_inputs(tmp_path, graph_model, accepted):
    model = graph_model()
    model.graph.input.append(helper.make_tensor_value_info("weight", TensorProto.FLOAT, [3, 2]))
    onnx.save(model, str(tmp_path / "m.onnx"))

    assert [spec.name for spec in accepted(tmp_path / "m.onnx").inputs] == ["x"]


@pytest.mark.parametrize(
    ("leading", "expected", "known_by"),
    [
        ("batch_size", "batch", KnownBy.HEADER),
        ("N", "batch", KnownBy.GUESS),
        ("unk__12", "batch", KnownBy.GUESS),
        ("s77", "batch", KnownBy.GUESS),
        (None, "batch", KnownBy.GUESS),
        ("sequence", "sequence", KnownBy.HEADER),
        (1, 1, KnownBy.HEADER),
    ],
)
def test_only_a_leading_axis_that_looks_like_a_batch_is_called_batch(
    tmp_path, graph_model, accepted, leading, expected, known_by
):
    onnx.save(graph_model(shape=[leading, 3]), str(tmp_path / "m.onnx"))

    spec = accepted(tmp_path / "m.onnx").inputs[0]
    assert (spec.shape, spec.known_by) == ((expected, 3), known_by)


def test_an_unnamed_leading_axis_is_no_batch_when_another_input_is_fixed():
    assert batch_names([["", 3], [5, 3]]) == frozenset()
    assert batch_names([["batch", 3], [5, 3]]) == {"batch"}
    assert batch_names([["N", "L"], ["N"]]) == {"N"}


def test_an_inner_axis_without_a_name_gets_one(tmp_path, graph_model, accepted):
    onnx.save(graph_model(shape=["batch", None]), str(tmp_path / "m.onnx"))

    assert accepted(tmp_path / "m.onnx").inputs[0].shape == ("batch", "x_1")


def test_a_graph_without_nodes_is_refused(tmp_path, graph_model, refused):
    onnx.save(graph_model(nodes=[]), str(tmp_path / "m.onnx"))

    assert "empty" in refused(tmp_path / "m.onnx", "model_failed").message


def test_a_truncated_graph_is_refused_with_what_is_missing(tmp_path, onnx_file, refused):
    whole = onnx_file.read_bytes()
    path = tmp_path / "cut.onnx"
    path.write_bytes(whole[:-40])

    message = refused(path, "model_failed").message
    assert "truncated ONNX file" in message


def test_a_folder_with_one_onnx_file_and_its_data_is_one_model(onnx_folder, accepted):
    descriptor = accepted(onnx_folder)

    assert descriptor.entry == "model.onnx"
    assert set(descriptor.files) == {"model.onnx", "model.data"}
    assert descriptor.parameter_bytes == 24


def test_external_data_that_is_not_there_is_named(onnx_folder, refused):
    refusal = refused(onnx_folder / "model.onnx", "model_failed")

    assert "model.data" in refusal.message and "folder" in refusal.hint


def test_external_data_that_is_too_short_is_a_truncated_model(onnx_folder, refused):
    (onnx_folder / "model.data").write_bytes(bytes(5))

    assert "truncated" in refused(onnx_folder, "model_failed").message


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "a/../../b", "c:\\x", "..\\x"])
def test_external_data_outside_the_folder_is_dangerous(onnx_folder, refused, location):
    model = onnx.load(str(onnx_folder / "model.onnx"), load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    (onnx_folder / "model.onnx").write_bytes(model.SerializeToString())

    refused(onnx_folder, "quarantined")


def test_operators_that_the_runtime_does_not_have_are_named(tmp_path, graph_model, refused):
    model = graph_model(nodes=[helper.make_node("MyOp", ["x"], ["y"], domain="acme")])
    onnx.save(model, str(tmp_path / "m.onnx"))

    assert "acme::MyOp" in refused(tmp_path / "m.onnx", "unsupported").message


def test_an_output_that_is_no_tensor_is_refused_with_the_option_that_helps(tmp_path, graph_model, refused):
    model = graph_model()
    model.graph.output[0].type.sequence_type.elem_type.map_type.key_type = TensorProto.INT64
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())

    assert "zipmap" in refused(tmp_path / "m.onnx", "unsupported").hint


def test_types_that_are_served_as_others_are_described_as_those_and_noted(tmp_path, graph_model, accepted, refused):
    kinds = {
        "parts": helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.INT64, ["N", 3])),
        "maybe": helper.make_optional_type_proto(helper.make_tensor_type_proto(TensorProto.BOOL, [2])),
        "small": helper.make_tensor_type_proto(TensorProto.FLOAT8E5M2, ["batch", 3]),
    }
    model = graph_model()
    model.graph.input.extend(helper.make_value_info(name, kind) for name, kind in kinds.items())
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())

    descriptor = accepted(tmp_path / "m.onnx")
    assert {spec.name: (spec.dtype, spec.shape) for spec in descriptor.inputs if spec.name in kinds} == {
        "parts": ("int64", ("parts_count", "N", 3)),
        "maybe": ("bool", (2,)),
        "small": ("float16", ("batch", 3)),
    }
    assert descriptor.types_in_file == {"parts": "sequence", "maybe": "optional", "small": "float8_e5m2"}
    for name in kinds:
        assert any(f"The input '{name}' is" in note for note in descriptor.notes)

    model.graph.input[1].type.sequence_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT8E5M2
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert "float8_e5m2" in refused(tmp_path / "m.onnx", "unsupported").message
    model.graph.input[1].type.CopyFrom(helper.make_tensor_type_proto(TensorProto.COMPLEX64, [2]))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert "complex64" in refused(tmp_path / "m.onnx", "unsupported").message


@pytest.mark.sklearn
def test_a_list_of_maps_that_a_classifier_gives_is_a_tensor_to_be(tmp_path, accepted):
    from skl2onnx import to_onnx
    from sklearn.linear_model import LogisticRegression

    classifier = LogisticRegression().fit([[0.0], [1.0]], ["no", "yes"])
    (tmp_path / "m.onnx").write_bytes(to_onnx(classifier, np.zeros((1, 1), np.float32)).SerializeToString())

    described = accepted(tmp_path / "m.onnx")
    label, shares = described.outputs
    assert (label.dtype, shares.dtype, shares.shape[0]) == ("string", "float32", label.shape[0])
    assert any("list of maps" in note for note in described.notes)


def test_operators_inside_subgraphs_are_counted(tmp_path, graph_model):
    branch = helper.make_graph(
        [helper.make_node("Tanh", ["h"], ["t"])], "branch", [], [helper.make_tensor_value_info("t", 1, None)]
    )
    nodes = [
        helper.make_node("Gemm", ["x", "weight"], ["h"]),
        helper.make_node("If", ["flag"], ["y"], then_branch=branch, else_branch=branch),
    ]
    model = graph_model(nodes=nodes)
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "flag"))
    onnx.save(model, str(tmp_path / "m.onnx"))

    assert describe(tmp_path / "m.onnx").descriptor.operators["Tanh"] == 2


def test_script_in_names_is_kept_as_text_of_one_line(tmp_path, graph_model, accepted):
    model = graph_model()
    model.producer_name = "<script>alert(1)</script>\nx\x00y"
    onnx.save(model, str(tmp_path / "m.onnx"))

    producer = accepted(tmp_path / "m.onnx").producer
    assert producer == "<script>alert(1)</script> x y 1"


def test_an_input_without_a_shape_is_asked_for_and_answered_by_a_sidecar(tmp_path, graph_model, refused, accepted):
    model = graph_model()
    model.graph.input[0].type.tensor_type.ClearField("shape")
    onnx.save(model, str(tmp_path / "m.onnx"))

    question = refused(tmp_path / "m.onnx", "needs_input")
    assert "What shape does input 'x' take?" in question.message
    said = yaml.safe_load(question.hint[question.hint.index("inputs:") :])
    descriptor = accepted(tmp_path / "m.onnx", sidecar=Sidecar.model_validate(said))
    assert [(spec.name, spec.shape) for spec in descriptor.inputs] == [("x", ("batch", 64))]
    assert descriptor.types_in_file == {"x": "tensor without a shape"}
    for odd in ("x:0", "a, b", "{y}", "é", "1"):
        model.graph.input[0].name = odd
        onnx.save(model, str(tmp_path / "odd.onnx"))
        hint = refused(tmp_path / "odd.onnx", "needs_input").hint
        assert [line["name"] for line in yaml.safe_load(hint[hint.index("inputs:") :])["inputs"]] == [odd]
    elsewhere = Sidecar.model_validate({"inputs": [{"name": "z", "shape": [1]}]})
    refused(tmp_path / "m.onnx", "needs_input", sidecar=elsewhere)


def test_a_file_newer_than_the_server_loads_is_noted(tmp_path, graph_model, accepted):
    model = graph_model()
    model.ir_version = 12
    onnx.save(model, str(tmp_path / "m.onnx"))

    descriptor = accepted(tmp_path / "m.onnx")
    assert descriptor.framework_version == "IR 12"
    assert any("IR version 12 (up to 10)" in note for note in descriptor.notes)


def test_bytes_in_matrix_products_are_counted_apart_from_convolutions(tmp_path, accepted):
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "k"], ["c"]), helper.make_node("MatMul", ["c", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8, 4, 2])],
        [
            numpy_helper.from_array(np.zeros((8, 3, 1, 1), np.float32), "k"),
            numpy_helper.from_array(np.zeros((4, 2), np.float32), "w"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "m.onnx")

    descriptor = accepted(tmp_path / "m.onnx")
    assert (descriptor.matrix_bytes, descriptor.parameter_bytes) == (32, 128)


def test_what_triton_cannot_be_told_is_refused_before_anything_runs(tmp_path, graph_model, refused):
    from onnx import helper, numpy_helper

    twice = graph_model()
    twice.graph.output.append(twice.graph.output[0])
    onnx.save(twice, str(tmp_path / "twice.onnx"))
    assert "more than once" in refused(tmp_path / "twice.onnx", "model_failed").message

    constant = graph_model(nodes=[helper.make_node("Constant", [], ["y"], value=numpy_helper.from_array(np.ones(2)))])
    del constant.graph.input[:]
    onnx.save(constant, str(tmp_path / "constant.onnx"))
    assert "takes no inputs" in refused(tmp_path / "constant.onnx", "unsupported").message


def test_names_that_no_descriptor_holds_are_not_listed_by_their_type(tmp_path, graph_model):
    kind = helper.make_optional_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [2]))
    model = graph_model()
    names = ["<script>\n", "x" * 300, *(f"o{number}" for number in range(1100))]
    model.graph.input.extend(helper.make_value_info(name, kind) for name in names)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())

    types = describe(tmp_path / "m.onnx").descriptor.types_in_file
    assert len(types) == 1000 and set(types) <= set(names[2:])


def test_axes_of_size_0_are_told_and_not_refused(tmp_path, graph_model, accepted):
    model = graph_model(shape=["batch", 0])
    model.graph.input.append(onnx.helper.make_tensor_value_info("nothing", onnx.TensorProto.FLOAT, [0]))
    onnx.save(model, str(tmp_path / "m.onnx"))
    assert {spec.name: spec.shape for spec in accepted(tmp_path / "m.onnx").inputs}["nothing"] == (0,)
