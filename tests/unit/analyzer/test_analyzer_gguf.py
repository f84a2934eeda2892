"""GGUF files: what the header tells, and that no header, however mangled, ends in another error than ours."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analyzer import describe
from analyzer.gguf import BLOCKS, MAX_ITEMS, MAX_KEYS, read_header
from schemas.descriptor import AnalysisReport, Format

Q4_K, F32 = 12, 0
Tensor = tuple[str, tuple[int, ...], int]
WEIGHTS: tuple[Tensor, ...] = (("token_embd.weight", (64, 128), Q4_K), ("output_norm.weight", (64,), F32))
LLAMA: dict[str, Any] = {
    "general.architecture": "llama",
    "general.name": "Tiny",
    "general.license": "apache-2.0",
    "general.file_type": 15,
    "llama.context_length": 2048,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": [f"token {number}" for number in range(200)],
    "tokenizer.ggml.scores": [0.5] * 200,
}
SETTINGS = settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def typed(value: Any) -> tuple[int, bytes]:
    match value:
        case bool():
            return 7, struct.pack("<?", value)
        case str():
            return 8, text(value)
        case int():
            return 4, struct.pack("<I", value)
        case float():
            return 6, struct.pack("<f", value)
    inner = typed(value[0])[0]
    return 9, struct.pack("<IQ", inner, len(value)) + b"".join(typed(item)[1] for item in value)


def gguf(metadata: dict[str, Any] | None = None, tensors: Sequence[Tensor] = WEIGHTS, version: int = 3) -> bytes:
    """Return a whole GGUF file with weights of zeros."""
    metadata = LLAMA if metadata is None else metadata
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    for key, value in metadata.items():
        kind, data = typed(value)
        head += text(key) + struct.pack("<I", kind) + data
    data = b""
    for name, axes, kind in tensors:
        count = 1
        for axis in axes:
            count *= axis
        _, values, nbytes = BLOCKS[kind]
        head += text(name) + struct.pack("<I", len(axes)) + b"".join(struct.pack("<Q", axis) for axis in axes)
        head += struct.pack("<IQ", kind, len(data))
        size = -(-count // values) * nbytes
        data += bytes(size + -size % 32)
    return head + bytes(-len(head) % 32) + data


@pytest.fixture
def write(tmp_path):
    def write(content: bytes) -> Path:
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        return path

    return write


def test_a_header_tells_architecture_size_quantisation_context_and_tokenizer(write, accepted):
    descriptor = accepted(write(gguf()))
    assert descriptor.format is Format.GGUF
    assert (descriptor.framework, descriptor.architecture, descriptor.task) == ("llama.cpp", "llama", "text-generation")
    assert (descriptor.quantisation, descriptor.context_length, descriptor.tokenizer) == ("Q4_K_M", 2048, "gpt2")
    assert (descriptor.parameter_count, descriptor.license) == (64 * 128 + 64, "apache-2.0")
    assert descriptor.parameter_dtypes == {"q4_k": 64 * 128, "float32": 64}
    assert descriptor.parameter_bytes == 64 * 128 // 256 * 144 + 64 * 4


def test_without_a_file_type_the_commonest_quantisation_is_told(write, accepted):
    metadata = {key: value for key, value in LLAMA.items() if key != "general.file_type"}
    assert accepted(write(gguf(metadata))).quantisation == "Q4_K"


def test_an_embedding_model_is_described_as_one(write, accepted):
    assert accepted(write(gguf({**LLAMA, "general.architecture": "nomic-bert"}))).task == "feature-extraction"


def test_long_lists_are_walked_over_and_not_kept(write):
    header = read_header(write(gguf()))
    assert len(header.metadata["tokenizer.ggml.tokens"]) == 64
    assert [tensor.name for tensor in header.tensors] == [name for name, _, _ in WEIGHTS]


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9, 0.999])
def test_a_file_that_ends_early_is_told_as_truncated(write, refused, share):
    whole = gguf()
    assert "truncated" in refused(write(whole[: int(len(whole) * share)]), "model_failed").message


def test_a_big_endian_file_is_refused_with_the_command_that_turns_it(write, refused):
    content = b"GGUF" + struct.pack(">IQQ", 3, 2, 8) + bytes(100)
    assert "little" in refused(write(content), "unsupported").hint


@pytest.mark.parametrize("magic", [b"lmgg", b"tjgg"])
def test_what_came_before_gguf_is_refused_with_the_conversion(write, refused, magic):
    assert "convert_hf_to_gguf" in refused(write(magic + bytes(200)), "unsupported").hint


def test_a_version_from_the_future_is_refused(write, refused):
    refused(write(gguf(version=9)), "unsupported")


def test_an_image_projector_and_a_part_of_a_split_model_are_refused(write, refused):
    assert "image" in refused(write(gguf({**LLAMA, "general.architecture": "clip"})), "unsupported").message
    assert "--merge" in refused(write(gguf({**LLAMA, "split.count": 3})), "unsupported").hint


def test_a_vocabulary_without_weights_is_refused(write, refused):
    refused(write(gguf(tensors=())), "model_failed")


def test_counts_beyond_any_model_are_refused_before_they_are_walked(write, refused):
    refused(write(b"GGUF" + struct.pack("<IQQ", 3, 1, MAX_KEYS + 1) + bytes(64)), "limit_exceeded")
    tokens = text("a") + struct.pack("<IIQ", 9, 8, MAX_ITEMS + 1)
    refused(write(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + tokens + bytes(64)), "limit_exceeded")


def test_lists_within_lists_end_at_a_depth(write, refused):
    nested = b"".join(struct.pack("<IQ", 9, 1) for _ in range(1000))
    refused(write(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<I", 9) + nested), "limit_exceeded")


@SETTINGS
@given(data=st.data())
def test_a_mangled_header_never_crashes_the_analysis(write, data):
    content = bytearray(gguf())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(4, len(content) - 1))] = data.draw(st.integers(0, 255))
    report = describe(write(bytes(content)))
    AnalysisReport.model_validate_json(report.model_dump_json())


@SETTINGS
@given(tail=st.binary(max_size=300), version=st.integers(0, 4))
def test_random_bytes_behind_the_magic_never_crash_the_analysis(write, tail, version):
    report = describe(write(b"GGUF" + struct.pack("<I", version) + tail))
    AnalysisReport.model_validate_json(report.model_dump_json())
