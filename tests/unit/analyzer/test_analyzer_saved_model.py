"""A SavedModel's graph is walked as wire format: its signature, what it serves, and what reaches out of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analyzer import describe
from schemas.descriptor import Format

DATA = Path(__file__).parents[2] / "data" / "tensorflow"
GRAPH = (DATA / "scores" / "saved_model.pb").read_bytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DATA / "scores", tmp_path / "scores"))


def test_a_saved_model_tells_its_served_signature_and_only_what_that_runs(accepted):
    found = accepted(DATA / "scores")

    assert (found.format, found.framework, found.framework_version) == (Format.SAVED_MODEL, "tensorflow", "2.21.0")
    assert [(s.name, s.dtype, s.shape) for s in found.inputs] == [("features", "float32", ("batch", 6))]
    assert {(s.name, s.dtype, s.shape) for s in found.outputs} == {
        ("logits", "float32", ("batch", 3)),
        ("label", "int64", ("batch",)),
    }
    assert found.operators["MatMul"] == found.operators["ArgMax"] == 1
    # The other signature doubles; what saves and restores is not served either.
    assert not {"Mul", "SaveV2", "RestoreV2"} & set(found.operators)
    assert (found.parameter_count, found.parameter_dtypes) == (18, {"float32": 18})
    assert any("2 signatures" in note for note in found.notes)


def test_a_graph_that_writes_files_is_quarantined(refused):
    assert "WriteFile" in refused(DATA / "writes", "quarantined").message


def test_a_graph_that_calls_python_is_asked_about(folder, refused):
    file = folder / "saved_model.pb"
    file.write_bytes(GRAPH.replace(b"ArgMax", b"PyFunc"))

    assert "PyFunc" in refused(folder, "needs_input").message


def test_a_shell_around_a_jax_function_is_sent_to_jax2onnx(tmp_path, refused):
    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    node = field(1, b"call") + field(2, b"XlaCallModule")
    output = field(1, b"y") + field(2, field(1, b"call:0") + b"\x10\x01" + field(3, b""))
    signature = field(1, b"serving_default") + field(2, field(2, output))
    graph = field(1, field(4, b"serve")) + field(2, field(1, node)) + field(5, signature)
    (tmp_path / "saved_model.pb").write_bytes(b"\x08\x01" + field(2, graph))

    assert "jax2onnx" in refused(tmp_path, "unsupported").hint


def test_lost_weights_are_named(folder, refused):
    shutil.rmtree(folder / "variables")

    assert "variables.index" in refused(folder, "model_failed").message


def test_a_cut_graph_is_called_truncated(folder, refused):
    (folder / "saved_model.pb").write_bytes(GRAPH[: len(GRAPH) // 2])

    assert "truncated" in refused(folder, "model_failed").message


def test_the_graph_alone_is_no_model(tmp_path, refused):
    shutil.copyfile(DATA / "scores" / "saved_model.pb", tmp_path / "saved_model")

    assert "whole folder" in refused(tmp_path / "saved_model", "unsupported").hint


def test_a_graph_as_text_is_refused(tmp_path, refused):
    (tmp_path / "saved_model.pbtxt").write_text("saved_model_schema_version: 1\n")

    refused(tmp_path, "unsupported")


@given(st.integers(0, len(GRAPH) - 1), st.binary(min_size=1, max_size=16))
def test_no_damage_to_a_graph_brings_the_reader_down(tmp_path_factory, at, damage):
    data = bytearray(GRAPH)
    data[at : at + len(damage)] = damage
    folder = tmp_path_factory.mktemp("saved")
    (folder / "saved_model.pb").write_bytes(bytes(data))

    assert describe(folder).descriptor.format is Format.SAVED_MODEL
