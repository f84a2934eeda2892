"""Formats are told by content, and what is not converted is refused with what to do."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from analyzer import describe
from analyzer.formats import recognise
from analyzer.zip_members import open_zip
from schemas.descriptor import Format
from schemas.errors import LimitExceeded


def _zip(**members: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "/"), data)
    return out.getvalue()


def _tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("model.onnx")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"abcd"))
    return out.getvalue()


def _npy() -> bytes:
    out = io.BytesIO()
    np.save(out, np.zeros(3))
    return out.getvalue()


def _npz() -> bytes:
    out = io.BytesIO()
    np.savez(out, x=np.zeros(3))
    return out.getvalue()


XGBOOST_TAIL = b"multi:softprob" + b"\x06" + bytes(7) + b"gbtree"
XGBOOST_BINARY = struct.pack("<fIiiiIII", 0.5, 4, 3, 1, 0, 1, 0, 0) + bytes(104) + struct.pack("<Q", 14)
SAVED_MODEL = b"\x08\x01\x12\x04\x0a\x02ab"
GRAPH_DEF = b"\x0a\x10\x0a\x01x\x12\x0bPlaceholder\x0a\x0f\x0a\x03a/y\x12\x05AddV2\x1a\x01x\x22\x03\x08\xa3\x0e"

CASES = [
    ("keras", _zip(**{"config.json": b"{}", "metadata.json": b"{}", "model.weights.h5": b"x"}), Format.KERAS, "save"),
    ("hdf5", b"\x89HDF\r\n\x1a\n" + bytes(100), Format.KERAS, "save"),
    ("saved_model.pb", SAVED_MODEL, Format.SAVED_MODEL, "whole folder"),
    (
        "xgboost binary",
        XGBOOST_BINARY + XGBOOST_TAIL,
        Format.XGBOOST,
        "save_model",
    ),
    ("executorch", b"\x1c\0\0\0ET12" + bytes(64), Format.UNKNOWN, "torch.export"),
    ("tensorrt engine", b"ftrt" + bytes(64), Format.UNKNOWN, "ONNX file"),
    ("tensorrt-rtx engine", b"vtrt" + bytes(64), Format.UNKNOWN, "ONNX file"),
    ("frozen graph", GRAPH_DEF, Format.UNKNOWN, "SavedModel"),
    ("core ml", b"\x08\x05\x12\x02\x0a\x00\xa2\x1f\x02\x0a\x00", Format.UNKNOWN, "converted from"),
    ("pmml", b'<?xml version="1.0"?>\n<PMML version="4.4">\n</PMML>', Format.TEXT, "joblib"),
    ("7z", b"7z\xbc\xaf\x27\x1c" + bytes(64), Format.ARCHIVE, "Unpack"),
    ("lz4", b"\x04\x22\x4d\x18" + bytes(64), Format.ARCHIVE, "joblib"),
    ("rar", b"Rar!\x1a\x07\x01\0", Format.ARCHIVE, "Unpack"),
    ("pickle", pickle.dumps({"a": [1, 2.5, "x"]}), Format.PICKLE, "joblib"),
    ("old joblib", b"ZF0x41" + bytes(64), Format.PICKLE, "joblib"),
    ("npy", _npy(), Format.NUMPY, "sidecar"),
    ("npz", _npz(), Format.NUMPY, "sidecar"),
    ("empty", b"", Format.EMPTY, "copy it again"),
    ("lfs", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", Format.TEXT, "git lfs pull"),
    ("html", b"\n<!DOCTYPE html><html><body>404</body></html>", Format.TEXT, "download"),
    ("json", b'{"model_type": "bert"}', Format.TEXT, "folder"),
    ("python", b"import torch\n\nclass Net(torch.nn.Module):\n    pass\n", Format.TEXT, "sidecar"),
    ("text", "N. Grüße, (a note)\n".encode(), Format.TEXT, "Check"),
    ("text like a pickle", b"class of 2024\nis over\n", Format.TEXT, "Check"),
    ("noise", bytes(range(128, 256)) * 4, Format.UNKNOWN, "Drop an ONNX"),
]


@pytest.mark.parametrize(("name", "content", "format_", "hint"), CASES, ids=[case[0] for case in CASES])
def test_what_is_not_converted_is_recognised_by_content_and_refused_with_what_to_do(
    tmp_path, refused, name, content, format_, hint
):
    path = tmp_path / "model.onnx"  # a name that lies
    path.write_bytes(content)

    assert recognise(path).format is format_
    refusal = refused(
        path, "model_failed" if format_ in (Format.TEXT, Format.EMPTY) or name == "noise" else "unsupported"
    )
    assert hint in refusal.hint


@pytest.mark.parametrize(
    "content",
    [
        _zip(**{"a.txt": b"a"}),
        _zip(**{"MAR-INF__MANIFEST.json": b"{}"}),
        _tar(),
        gzip.compress(_tar()),
        lzma.compress(_tar()),
        bz2.compress(b"just text"),
    ],
    ids=["zip", "mar", "tar", "tar.gz", "tar.xz", "bz2"],
)
def test_what_is_unpacked_in_the_next_step_is_recognised_and_not_refused(tmp_path, accepted, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)

    assert accepted(path).format is Format.ARCHIVE


def test_a_name_decides_nothing(tmp_path, onnx_file, accepted):
    renamed = tmp_path / "photo.jpg"
    renamed.write_bytes(onnx_file.read_bytes())

    assert accepted(renamed).format is Format.ONNX


def test_a_folder_that_is_no_model_says_what_was_looked_for(tmp_path, refused):
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "notes.txt").write_text("nothing here")

    message = refused(folder, "model_failed").message
    assert "config.json" in message and ".onnx" in message and "notes.txt" in message


def test_an_empty_folder_is_refused(tmp_path, refused):
    folder = tmp_path / "nothing"
    folder.mkdir()

    assert "empty" in refused(folder, "model_failed").message


def test_a_folder_of_two_onnx_models_asks_for_one(tmp_path, onnx_file, refused):
    folder = tmp_path / "two"
    folder.mkdir()
    for name in ("a.onnx", "b.onnx"):
        (folder / name).write_bytes(onnx_file.read_bytes())

    assert "a.onnx, b.onnx" in refused(folder, "model_failed").message


def test_a_folder_that_holds_several_models_names_them(tmp_path, refused, write_safetensors):
    folder = tmp_path / "wrapped"
    folder.mkdir()
    for name in ("a.safetensors", "b.safetensors"):
        write_safetensors(folder / name, {"w": ("F32", [2])})

    assert "a.safetensors, b.safetensors" in refused(folder, "model_failed").message


def test_a_zip_with_a_huge_directory_is_refused_before_it_is_read(tmp_path):
    content = bytearray(_zip(**{"a.txt": b"a"}))
    end = content.rfind(b"PK\x05\x06")
    struct.pack_into("<I", content, end + 12, 1 << 31)
    path = tmp_path / "bomb.zip"
    path.write_bytes(content)

    with pytest.raises(LimitExceeded), open_zip(path):
        pass


def test_a_link_inside_a_folder_is_not_followed(tmp_path, onnx_file):
    folder = tmp_path / "linked"
    folder.mkdir()
    Path(folder / "model.onnx").symlink_to(onnx_file)

    report = describe(folder)
    assert report.refusal is not None and report.descriptor.entry is None
