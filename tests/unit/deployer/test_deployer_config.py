from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployer.config_checks import check_config, check_entry
from deployer.config_text import TRITON_TYPES, config_text, labels_text, parse_config
from schemas.deployment import EntrySpec
from schemas.descriptor import KnownBy, TensorSpec
from schemas.errors import InvalidDocument
from schemas.evidence import BatchProof

MakeSpec = Callable[..., EntrySpec]


def tensor(name: str, dtype: str, *shape: int | str) -> TensorSpec:
    return TensorSpec.model_validate({"name": name, "dtype": dtype, "shape": shape, "known_by": KnownBy.PROBE})


def test_a_batched_entry_leaves_the_batch_axis_out_and_batches(make_spec: MakeSpec) -> None:
    config = parse_config(config_text(make_spec()))
    assert config.max_batch_size == 8 and list(config.input[0].dims) == [4]
    assert list(config.dynamic_batching.preferred_batch_size) == [2, 8]
    assert config.dynamic_batching.max_queue_delay_microseconds > 0


def test_one_number_a_row_is_reshaped_to_nothing(make_spec: MakeSpec) -> None:
    config = parse_config(config_text(make_spec()))
    assert list(config.output[0].dims) == [1] and list(config.output[0].reshape.shape) == []
    assert config.output[0].HasField("reshape")
    assert not config.output[1].HasField("reshape")


def test_without_a_proof_nothing_is_batched_and_every_axis_is_in_dims(make_spec: MakeSpec) -> None:
    config = parse_config(config_text(make_spec(max_batch_size=0)))
    assert not config.HasField("dynamic_batching")
    assert list(config.input[0].dims) == [-1, 4] and list(config.output[0].dims) == [-1]
    assert not config.output[0].HasField("reshape")


def test_only_the_entrys_own_version_is_served(make_spec: MakeSpec) -> None:
    config = parse_config(config_text(make_spec(version=7)))
    assert list(config.version_policy.specific.versions) == [7]
    assert config.output[1].label_filename == "labels-7.txt"


def test_a_warm_up_has_only_sizes_that_were_seen_to_run(make_spec: MakeSpec) -> None:
    ids = (tensor("ids", "int64", "batch", "sequence"),)
    assert not parse_config(config_text(make_spec(inputs=ids))).model_warmup
    config = parse_config(config_text(make_spec(inputs=ids, example_axes={"sequence": 12})))
    assert list(config.model_warmup[0].inputs["ids"].dims) == [12]
    assert config.model_warmup[0].inputs["ids"].zero_data


def test_a_model_that_takes_strings_gets_no_warm_up(make_spec: MakeSpec) -> None:
    strings = (tensor("color", "string", "batch", 1),)
    assert not parse_config(config_text(make_spec(inputs=strings))).model_warmup


def test_every_data_type_is_one_of_tritons(make_spec: MakeSpec) -> None:
    for dtype in TRITON_TYPES:
        config = parse_config(config_text(make_spec(inputs=(tensor("x", dtype, "batch", 2),))))
        assert check_config(config) == ()


def test_a_label_with_a_line_break_does_not_move_the_others() -> None:
    assert labels_text(("a\nb", "c\u2028d", "e")) == "a b\nc d\ne\n"


names = st.text(min_size=1, max_size=40)
dims = st.integers(1, 1 << 20) | st.sampled_from(["batch", "sequence", "height", "été"])
shapes = st.lists(dims, min_size=1, max_size=6).map(tuple)
tensors = st.builds(
    lambda name, dtype, shape: tensor(name, dtype, *shape), names, st.sampled_from(sorted(TRITON_TYPES)), shapes
)
batched = st.builds(
    lambda name, dtype, shape: tensor(name, dtype, "batch", *shape),
    names,
    st.sampled_from(sorted(TRITON_TYPES)),
    st.lists(dims, max_size=4).map(tuple),
)


@given(
    st.booleans().flatmap(
        lambda batching: st.tuples(
            st.just(batching),
            st.lists(batched if batching else tensors, min_size=1, max_size=4, unique_by=lambda t: t.name),
            st.lists(batched if batching else tensors, min_size=1, max_size=4, unique_by=lambda t: t.name),
        )
    ),
    st.dictionaries(st.sampled_from(["batch", "sequence", "height"]), st.integers(0, 1000)),
)
def test_every_config_reads_back_and_passes_our_checks(
    drawn: tuple[bool, list[TensorSpec], list[TensorSpec]], axes: dict[str, int]
) -> None:
    batching, inputs, outputs = drawn
    spec = EntrySpec(
        name="any",
        version=3,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        batching=BatchProof(holds=batching, reason="", sizes=(1, 3, 16)),
        max_batch_size=16 if batching else 0,
        example_axes=axes,
    )
    config = parse_config(config_text(spec))
    assert check_config(config) == ()
    assert [t.name for t in config.input] == [t.name for t in inputs]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("instance_group { count: -1 }", "count -1"),
        ('input { name: "x" data_type: TYPE_FP32 dims: [1] }', "declared 2 times"),
        ('output { name: "z" data_type: TYPE_FP32 dims: [0] }', "dims [0]"),
        ('output { name: "z" data_type: TYPE_FP32 dims: [2] reshape { shape: [3] } }', "another number of values"),
        ('output { name: "z" dims: [2] }', "no data type"),
    ],
)
def test_what_the_server_lets_pass_is_found(make_spec: MakeSpec, change: str, words: str) -> None:
    assert any(words in problem for problem in check_config(parse_config(config_text(make_spec()) + change)))


def test_batching_that_contradicts_itself_is_found(make_spec: MakeSpec) -> None:
    config = parse_config(config_text(make_spec()))
    config.max_batch_size = 0
    assert any("without batching" in problem for problem in check_config(config))
    config.max_batch_size = 4
    assert check_config(config) == ("Preferred batch size 8 is not within 1 and 4.",)
    del config.output[:]
    assert "There is no output." in check_config(config)


def test_an_unknown_field_is_refused_with_line_and_column() -> None:
    with pytest.raises(InvalidDocument, match="1:1"):
        parse_config('surprise: "x"')


def test_an_entry_without_its_files_is_found(make_spec: MakeSpec, tmp_path: Path) -> None:
    entry = tmp_path / "other"
    entry.mkdir()
    assert check_entry(entry) == ("There is no config.pbtxt.",)
    (entry / "config.pbtxt").write_text(config_text(make_spec()))
    problems = " ".join(check_entry(entry))
    assert "of 'iris', the folder of 'other'" in problems
    assert "Version 1 has no model.onnx" in problems and "labels-1.txt" in problems


def test_the_control_plane_reads_configs_without_numpy_or_grpc() -> None:
    code = (
        "import sys, deployer, deployer.kserve, deployer.next_steps, deployer.health, planner.rules, validator.verdict;"
        "from deployer.config_text import parse_config; parse_config('name: \"x\"');"
        "print(*({'numpy', 'grpc', 'onnx', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
