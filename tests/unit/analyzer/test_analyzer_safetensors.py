"""A safetensors header is believed only as far as it fits the file."""

from __future__ import annotations

import json

import pytest

from analyzer.safetensors_header import read_header
from schemas.errors import LimitExceeded, ModelFailed


def _file(path, header: dict, data: bytes = b"", length: int | None = None):
    text = json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def _tensor(shape, offsets, dtype="F32"):
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


def test_tensors_are_read_in_file_order(tmp_path, write_safetensors):
    write_safetensors(tmp_path / "m", {"b": ("F16", [2, 3]), "a": ("I64", [])})

    tensors, _ = read_header(tmp_path / "m")
    assert [(t.name, t.dtype, t.shape, t.size_bytes) for t in tensors] == [
        ("b", "float16", (2, 3), 12),
        ("a", "int64", (), 8),
    ]


@pytest.mark.parametrize(
    "header",
    [
        _tensor([2], [0, 4]),
        _tensor([2], [8, 16]),
        _tensor([-1], [0, 4]),
        _tensor([2.0], [0, 8]),
        _tensor([True], [0, 4]),
        _tensor([2], [0, 8], "F33"),
        _tensor([1 << 60], [0, 8]),
        {"w": 3},
        {"w": {"dtype": "F32"}},
    ],
)
def test_a_header_that_does_not_add_up_is_refused(tmp_path, header):
    with pytest.raises(ModelFailed):
        read_header(_file(tmp_path / "m", header, bytes(8)))


def test_bytes_after_the_last_tensor_are_refused(tmp_path):
    with pytest.raises(ModelFailed, match="follow"):
        read_header(_file(tmp_path / "m", _tensor([2], [0, 8]), bytes(9)))


def test_a_header_longer_than_the_format_allows_is_refused_unread(tmp_path):
    with pytest.raises(LimitExceeded):
        read_header(_file(tmp_path / "m", {}, length=1 << 60))
