"""However a file is mangled, analysis ends with a report and never with another error than ours."""

from __future__ import annotations

import contextlib
import io
import pickle
import pickletools
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analyzer import describe
from analyzer.byte_source import ByteSource
from analyzer.pickle_machine import BrokenPickle, read_pickle
from analyzer.pickle_values import Entries
from schemas.descriptor import AnalysisReport

SETTINGS = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
HEADS = [
    b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x04\x95", b"\x08\x0a:", b"\x93NUMPY", b"\x1f\x8b\x08", b"BZh9", b"x\x9c",
    b"]\0\0\x80\0", b"\xfd7zXZ\0", b"\x10\0\0\0\0\0\0\0{", b"(lp0\n", b"cos\nsystem\n", b"PK\x05\x06", b"{L",
]  # fmt: skip


def _survives(path: Path) -> None:
    report = describe(path)
    AnalysisReport.model_validate_json(report.model_dump_json())


@SETTINGS
@given(head=st.sampled_from(HEADS), tail=st.binary(max_size=400))
def test_random_bytes_never_crash_the_analysis(tmp_path, head, tail):
    path = tmp_path / "m"
    path.write_bytes(head + tail)
    _survives(path)


def _mangled(data: st.DataObject, whole: bytes) -> bytes:
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(0, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    return bytes(content)


@SETTINGS
@given(data=st.data())
def test_a_mangled_onnx_file_never_crashes_the_analysis(onnx_file, data):
    path = onnx_file.with_name("mangled")
    path.write_bytes(_mangled(data, onnx_file.read_bytes()))
    _survives(path)


@pytest.mark.torch
@pytest.mark.parametrize("name", ["traced.pt", "program.pt2", "state.pth", "legacy.pth", "weights.safetensors"])
@settings(SETTINGS, max_examples=25)
@given(data=st.data())
def test_a_mangled_torch_file_never_crashes_the_analysis(torch_files, tmp_path, name, data):
    path = tmp_path / "m"
    path.write_bytes(_mangled(data, (torch_files / name).read_bytes()))
    _survives(path)


@pytest.mark.sklearn
@pytest.mark.parametrize("name", ["protocol0.pkl", "protocol5.pkl", "plain.joblib", "xz.joblib", "zlib.joblib"])
@settings(SETTINGS, max_examples=25)
@given(data=st.data())
def test_a_mangled_pickle_never_crashes_the_analysis(sklearn_files, tmp_path, name, data):
    path = tmp_path / "m"
    path.write_bytes(_mangled(data, (sklearn_files / name).read_bytes()))
    _survives(path)


OPCODES = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]


@SETTINGS
@given(st.lists(st.one_of(st.sampled_from(OPCODES), st.binary(max_size=3)), max_size=60))
def test_random_opcodes_never_crash_the_machine(parts):
    content = b"".join(parts)
    with contextlib.suppress(EOFError, BrokenPickle):
        read_pickle(ByteSource(io.BytesIO(content), len(content)))


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


def _plain(value):
    if isinstance(value, Entries):
        return {key: _plain(inner) for key, inner in value.pairs}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


@SETTINGS
@given(value=PLAIN, protocol=st.integers(0, 5))
def test_plain_values_are_read_back_as_they_were_pickled(value, protocol):
    content = pickle.dumps(value, protocol=protocol)

    reading = read_pickle(ByteSource(io.BytesIO(content), len(content)))
    assert reading.complete and _plain(reading.root) == value
    assert reading.offset == len(content)
