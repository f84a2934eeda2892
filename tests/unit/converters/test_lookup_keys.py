"""Inputs are drawn from what a model's tables know, for nothing else would ever be found in them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from converters.domain import Domain
from converters.lookup_keys import Keys, with_keys
from converters.onnx_runner import OnnxRunner
from converters.sampling import random_feeds
from schemas.descriptor import KnownBy, TensorSpec


def looked_up(tmp_path, node: onnx.NodeProto, key: int, value: int) -> OnnxRunner:
    """Columns of a table, one of which goes through a node of onnx's ML operators."""
    columns = helper.make_tensor("which", TensorProto.INT64, (1,), [1])
    picked = helper.make_node("ArrayFeatureExtractor", ["table", "which"], ["column"], domain="ai.onnx.ml")
    graph = helper.make_graph(
        [picked, node],
        "g",
        [helper.make_tensor_value_info("table", key, ["n", 2]), helper.make_tensor_value_info("free", key, ["n"])],
        [helper.make_tensor_value_info("y", value, None)],
        [columns],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 2)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "m.onnx")
    return OnnxRunner(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("kind", "attributes", "dtype", "known"),
    [
        ("LabelEncoder", {"keys_strings": ["a", "b"], "values_int64s": [1, 2]}, TensorProto.STRING, {"a", "b"}),
        ("LabelEncoder", {"keys_int64s": [70, 9000], "values_int64s": [1, 2]}, TensorProto.INT64, {70, 9000}),
        ("CategoryMapper", {"cats_strings": ["a", "b"], "cats_int64s": [3, 4]}, TensorProto.STRING, {"a", "b"}),
        ("OneHotEncoder", {"cats_int64s": [3, 4], "zeros": 1}, TensorProto.INT64, {3, 4}),
    ],
)
def test_an_input_that_a_table_is_asked_for_holds_keys_of_it_and_others(tmp_path, kind, attributes, dtype, known):
    node = helper.make_node(kind, ["column"], ["y"], domain="ai.onnx.ml", **attributes)
    value = TensorProto.FLOAT if kind == "OneHotEncoder" else TensorProto.INT64
    runner = looked_up(tmp_path, node, dtype, value)
    feeds = random_feeds(runner.inputs, {"n": 200}, np.random.default_rng(0), runner.domains)
    assert set(runner.domains) == {"table"}
    assert known < set(feeds["table"].flat) and len(set(feeds["table"].flat)) == len(known) + 2
    assert runner.run(feeds)["y"].size


def test_where_only_keys_run_only_keys_are_drawn(tmp_path):
    node = helper.make_node(
        "OneHotEncoder", ["column"], ["y"], domain="ai.onnx.ml", cats_strings=["red", "blue"], zeros=0
    )
    runner = looked_up(tmp_path, node, TensorProto.STRING, TensorProto.FLOAT)
    feeds = random_feeds(runner.inputs, {"n": 50}, np.random.default_rng(0), runner.domains)
    assert set(feeds["table"].flat) == {"red", "blue"}


@given(
    st.sets(st.integers(-(1 << 70), 1 << 70), max_size=40),
    st.sampled_from(["int32", "int64", "uint8"]),
    st.one_of(st.none(), st.integers(1, 1000)),
)
def test_no_key_is_drawn_that_the_input_cannot_hold(numbers, dtype, limit):
    spec = TensorSpec(name="x", dtype=dtype, shape=(3,), known_by=KnownBy.HEADER)
    keys = Keys()
    keys.add(numbers)
    [domain] = with_keys({"x": Domain(limit=limit)}, [spec], {"x": keys}).values()
    bounds = np.iinfo(dtype)
    for number in () if domain.choices is None else domain.choices:
        assert bounds.min <= number <= bounds.max
        assert limit is None or 0 <= number < limit
