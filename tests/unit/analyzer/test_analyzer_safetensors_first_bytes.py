"""A safetensors file is known by what it holds, also where its first bytes are those of a pickle."""

from __future__ import annotations

import json

import pytest

from analyzer.formats import recognise
from schemas.descriptor import Format


@pytest.mark.parametrize("length", [0x280, 0x380, 0x480, 0x580])
def test_a_header_whose_length_reads_as_a_pickle_s_protocol_is_no_pickle(tmp_path, refused, length):
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode().ljust(length)
    file = tmp_path / "net.safetensors"
    file.write_bytes(length.to_bytes(8, "little") + header + bytes(8))

    assert file.read_bytes()[:1] == b"\x80"
    assert recognise(file).format is Format.SAFETENSORS
    error = refused(file, "needs_input")
    assert "Which class do these weights belong to?" in error.message


def test_a_pickle_that_begins_as_a_safetensors_file_would_is_still_caught(tmp_path, refused):
    # BINFLOAT swallows the bytes that make it look like a safetensors header; then comes the call.
    file = tmp_path / "net.safetensors"
    file.write_bytes(b"\x80\x02G\0\0\0\0\0{\0\0" + b"0cposix\nsystem\n(X\x02\0\0\0idtR.")

    refused(file, "quarantined")
