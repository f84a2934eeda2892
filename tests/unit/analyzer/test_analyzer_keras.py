"""Keras files tell their layers and inputs, and what of them is code; nothing in them is loaded."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analyzer import describe
from schemas.descriptor import Format

DATA = Path(__file__).parents[2] / "data" / "tensorflow"


def _layer(kind: str, name: str, module: str = "keras.layers", **config: Any) -> dict[str, Any]:
    return {
        "module": module,
        "class_name": kind,
        "config": {"name": name, **config},
        "registered_name": config.pop("registered", None),
    }


def _model(*layers: dict[str, Any], **config: Any) -> dict[str, Any]:
    return {
        "module": "keras",
        "class_name": "Sequential",
        "config": {"name": "net", "layers": list(layers), **config},
        "registered_name": None,
    }


INPUT = _layer("InputLayer", "pixels", batch_shape=[None, None, None, 3], dtype="float32")


def keras_file(path: Path, config: Any, metadata: Any = None) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", config if isinstance(config, bytes) else json.dumps(config))
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.15.1"} if metadata is None else metadata))
        archive.writestr("model.weights.h5", b"\x89HDF\r\n\x1a\n" + bytes(64))
    return path


def test_a_keras_file_tells_its_version_layers_and_inputs(tmp_path, accepted):
    nested = _model(_layer("Dense", "inner"))
    wrapped = _layer("TimeDistributed", "each", layer=_layer("Conv2D", "conv"))
    path = keras_file(tmp_path / "m.keras", _model(INPUT, nested, wrapped, _layer("Dense", "last")))

    found = accepted(path)
    assert (found.format, found.framework, found.framework_version) == (Format.KERAS, "keras", "3.15.1")
    assert found.architecture == "net"
    assert found.operators == {"Dense": 2, "Conv2D": 1, "TimeDistributed": 1}
    assert [(s.name, s.dtype, s.shape) for s in found.inputs] == [
        ("pixels", "float32", ("batch", "height", "width", 3))
    ]


def test_inputs_stand_in_the_order_of_the_model_and_not_of_the_layers(tmp_path, accepted):
    first = _layer("InputLayer", "a", batch_shape=[None, 4], dtype="int32")
    second = _layer("InputLayer", "b", batch_shape=[None, None], dtype="float32")
    path = keras_file(tmp_path / "m.keras", _model(first, second, input_layers=[["b", 0, 0], ["a", 0, 0]]))

    assert [(s.name, s.dtype, s.shape) for s in accepted(path).inputs] == [
        ("b", "float32", ("batch", "b_1")),
        ("a", "int32", ("batch", 4)),
    ]


def test_a_lambda_layer_is_quarantined_and_never_deserialised(tmp_path, refused):
    code = {"class_name": "__lambda__", "config": {"code": "4wEAAAA", "defaults": None, "closure": None}}
    path = keras_file(tmp_path / "m.keras", _model(INPUT, _layer("Lambda", "double", function=code)))

    assert "Lambda" in refused(path, "quarantined").message


def test_a_config_that_names_what_reaches_the_system_is_quarantined(tmp_path, refused):
    path = keras_file(tmp_path / "m.keras", _model(INPUT, _layer("system", "x", module="os")))

    assert "os.system" in refused(path, "quarantined").message


def test_classes_of_the_authors_own_are_named_with_what_to_do(tmp_path, refused):
    own = {**_layer("Doubled", "d", module="zoo.layers"), "registered_name": "zoo>Doubled"}
    refusal = refused(keras_file(tmp_path / "m.keras", _model(INPUT, own)), "unsupported")

    assert "zoo>Doubled" in refusal.message
    assert "model.export" in refusal.hint


@pytest.mark.parametrize("config", [b"{", b"[1]", b'{"class_name": 3}', b"[" * 100_000, b"null", b"\xff\xfe"])
def test_a_broken_config_is_refused_with_a_sentence(tmp_path, config):
    report = describe(keras_file(tmp_path / "m.keras", config))

    assert report.refusal is not None and report.refusal.code in ("model_failed", "unsupported")


def test_a_whole_model_in_hdf5_tells_the_same_facts(accepted):
    found = accepted(DATA / "two_towers.h5")

    assert (found.architecture, found.framework_version) == ("two_towers", "3.15.1")
    assert found.operators == {"Dense": 3, "Subtract": 1}
    assert [(s.name, s.shape) for s in found.inputs] == [("query", ("batch", 8)), ("item", ("batch", 8))]


def test_weights_alone_are_asked_about(refused):
    refusal = refused(DATA / "only.weights.h5", "needs_input")

    assert "no architecture" in refusal.message
    assert "load_weights" in refusal.hint


def test_an_hdf5_file_of_something_else_is_no_model(tmp_path, refused):
    path = tmp_path / "measurements.h5"
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(4096))

    assert "without a Keras model" in refused(path, "unsupported").message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["class_name", "config", "layers", "layer", "module", "name", "batch_shape", "dtype", "input_layers"]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=30,
)


@given(JSON)
def test_no_config_brings_the_reader_down(tmp_path_factory, config):
    path = keras_file(tmp_path_factory.mktemp("keras") / "m.keras", config, config)

    assert describe(path).descriptor.format is Format.KERAS


@given(st.integers(0, 24_000), st.binary(min_size=1, max_size=40))
def test_no_damage_to_an_hdf5_file_brings_the_reader_down(tmp_path_factory, at, damage):
    data = bytearray((DATA / "two_towers.h5").read_bytes())
    data[max(at, 8) : max(at, 8) + len(damage)] = damage
    path = tmp_path_factory.mktemp("h5") / "m.h5"
    path.write_bytes(bytes(data))

    assert describe(path).descriptor.format is Format.KERAS
