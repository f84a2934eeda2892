"""TFLite and JAX files are flatbuffers, of which no offset is believed."""

from __future__ import annotations

import struct
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from analyzer import describe
from schemas.descriptor import Format

DATA = Path(__file__).parents[2] / "data" / "tensorflow"
FLOAT = (DATA / "two_towers.tflite").read_bytes()
JAX = (DATA / "function.jax").read_bytes()


def test_a_tflite_file_tells_its_signature_operators_and_parameters(accepted):
    found = accepted(DATA / "two_towers.tflite")

    assert (found.format, found.framework) == (Format.TFLITE, "tflite")
    assert found.operators == {"FULLY_CONNECTED": 3, "SUB": 1}
    assert {(s.name, s.dtype, s.shape) for s in found.inputs} == {
        ("query", "float32", ("batch", 8)),
        ("item", "float32", ("batch", 8)),
    }
    assert {(s.name, s.shape) for s in found.outputs} == {(f"output_{i}", ("batch", 4)) for i in range(3)}
    # Two kernels of 8 x 4 and one of 4 x 4; the zero biases are not stored.
    assert (found.parameter_count, found.matrix_bytes) == (80, 320)


def test_a_quantised_tflite_file_says_so(accepted):
    found = accepted(DATA / "two_towers_int8.tflite")

    assert {s.dtype for s in (*found.inputs, *found.outputs)} == {"int8"}
    assert found.parameter_dtypes == {"int8": 80}
    assert any("quantised" in note for note in found.notes)


def test_a_tflite_file_that_was_cut_is_called_truncated(tmp_path, refused):
    path = tmp_path / "m.tflite"
    path.write_bytes(FLOAT[:200])

    assert "truncated TFLite" in refused(path, "model_failed").message


def test_a_flatbuffer_that_pretends_to_be_huge_is_refused_soon(tmp_path):
    # One subgraph table stands a million times in the vector of subgraphs, and one tensor as often in each.
    path = tmp_path / "m.tflite"
    count = 1_000_000
    vtable = struct.pack("<HHHHH", 10, 8, 0, 0, 4)
    header = struct.pack("<I4s", 20, b"TFL3") + bytes(2) + vtable
    table = struct.pack("<iI", 10, 4)
    vector = struct.pack("<I", count) + b"".join(struct.pack("<i", -4 * i - 8 - 4) for i in range(count))
    path.write_bytes(header + table + vector)

    assert describe(path).refusal is not None


@given(st.integers(8, len(FLOAT) - 1), st.binary(min_size=1, max_size=8), st.integers(0, len(FLOAT)))
def test_no_damage_to_a_tflite_file_brings_the_reader_down(tmp_path_factory, at, damage, cut):
    data = bytearray(FLOAT)
    data[at : at + len(damage)] = damage
    path = tmp_path_factory.mktemp("tflite") / "m.tflite"
    path.write_bytes(bytes(data[: max(cut, 8)]))

    assert describe(path).descriptor.format is Format.TFLITE


def test_a_jax_export_tells_its_signature_and_what_to_do(refused):
    refusal = refused(DATA / "function.jax", "unsupported")
    found = describe(DATA / "function.jax").descriptor

    assert "jax2onnx" in refusal.hint
    assert (found.format, found.framework) == (Format.JAX_EXPORT, "jax")
    assert [(s.dtype, s.shape) for s in (*found.inputs, *found.outputs)] == [
        ("float32", ("b", 6)),
        ("float32", ("b", 3)),
    ]


@given(st.integers(0, len(JAX) - 1), st.binary(min_size=1, max_size=8))
def test_no_damage_to_a_jax_export_brings_the_reader_down(tmp_path_factory, at, damage):
    data = bytearray(JAX)
    data[at : at + len(damage)] = damage
    path = tmp_path_factory.mktemp("jax") / "m"
    path.write_bytes(bytes(data))

    assert describe(path).refusal is not None


def test_stablehlo_alone_is_refused_as_bytecode_and_as_text(tmp_path, refused):
    (tmp_path / "m.mlirbc").write_bytes(b"ML\xefR\x0dStableHLO_v1.15.0\0" + bytes(64))
    (tmp_path / "m.mlir").write_text("module @jit_f {\n  %0 = stablehlo.tanh %arg0 : tensor<3xf32>\n}\n")

    for name in ("m.mlirbc", "m.mlir"):
        assert "StableHLO" in refused(tmp_path / name, "unsupported").message


def test_an_orbax_checkpoint_is_asked_about_by_its_arrays(tmp_path, refused):
    tree = '{"tree_metadata": {"(\'dense\', \'kernel\')": {"value_metadata": {"write_shape": [4, 3]}}}}'
    (tmp_path / "_METADATA").write_text(tree)
    (tmp_path / "manifest.ocdbt").write_bytes(b"ocdbt")

    assert "dense.kernel" in refused(tmp_path, "needs_input").message
    assert describe(tmp_path).descriptor.parameter_count == 12
