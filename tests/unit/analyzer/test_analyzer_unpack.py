"""Archives, made here, unpacked by the step: what comes out, and what is refused with one sentence."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import random
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from analyzer import describe
from analyzer.unpack import unpack
from analyzer.zstd_stream import can_unzstd
from schemas.descriptor import Format, UnpackReport
from schemas.errors import LimitExceeded, ModelFailed, NeedsInput, Quarantined, Unsupported
from schemas.step_io import StepContext, StepRequest
from schemas.step_options import UnpackOptions

EVIL = b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00id\x85R."


def tarred(members: dict[str, bytes], more: Iterable[tarfile.TarInfo] = ()) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info in more:
            archive.addfile(info)
    return out.getvalue()


def zipped(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


@pytest.fixture
def unpacked(tmp_path: Path) -> Callable[..., tuple[Path, UnpackReport]]:
    """Return how to unpack bytes: the model's path and the report."""

    def run(data: bytes, **options: Any) -> tuple[Path, UnpackReport]:
        (tmp_path / "in").mkdir()
        (tmp_path / "out").mkdir()
        (tmp_path / "in" / "model").write_bytes(data)
        context = StepContext(
            StepRequest(kind="unpack", inputs={"model": "in/model"}), tmp_path, UnpackOptions(**options)
        )
        outcome = unpack(context)
        assert isinstance(outcome.report, UnpackReport)
        assert [item.name for item in context.out.iterdir()] == ["model"]
        return context.out / outcome.outputs["model"], outcome.report

    return run


@pytest.mark.parametrize(
    "pack",
    [
        tarred,
        lambda members: gzip.compress(tarred(members)),
        lambda members: bz2.compress(tarred(members)),
        lambda members: lzma.compress(tarred(members)),
        zipped,
    ],
    ids=["tar", "tar.gz", "tar.bz2", "tar.xz", "zip"],
)
def test_a_folder_comes_out_without_its_top_and_without_junk(unpacked, pack, onnx_file):
    members = {
        "net-v2/model.onnx": onnx_file.read_bytes(),
        "net-v2/labels.txt": b"cat\ndog\n",
        "__MACOSX/net-v2/._model.onnx": b"\0\5\x16\7",
        "net-v2/.DS_Store": b"\0\0\0\1Bud1",
        "net-v2/modelium.yaml": b"task: image-classification\n",
    }

    path, report = unpacked(pack(members))

    assert sorted(item.name for item in path.iterdir()) == ["labels.txt", "model.onnx", "modelium.yaml"]
    assert (path / "model.onnx").read_bytes() == onnx_file.read_bytes()
    assert (report.file_count, report.skipped, report.sidecar) == (3, 2, "modelium.yaml")
    assert describe(path).descriptor.format is Format.ONNX


@pytest.mark.parametrize("pack", [gzip.compress, lambda data: gzip.compress(tarred({"a/b/net.onnx": data}))])
def test_one_packed_file_comes_out_as_a_file(unpacked, pack, onnx_file):
    path, report = unpacked(pack(onnx_file.read_bytes()))

    assert path.read_bytes() == onnx_file.read_bytes()
    assert report.file_count == 1


def test_an_archive_in_an_archive_is_unpacked_once(unpacked, onnx_file):
    inner = gzip.compress(tarred({"net/model.onnx": onnx_file.read_bytes(), "net/readme.txt": b"hello"}))

    path, report = unpacked(zipped({"net.tar.gz": inner}))

    assert report.layers == ("zip", "tar")
    assert (path / "model.onnx").read_bytes() == onnx_file.read_bytes()


def test_a_third_layer_is_refused(unpacked, onnx_file):
    with pytest.raises(Unsupported, match="an archive that holds an archive"):
        unpacked(zipped({"b.zip": zipped({"a.zip": zipped({"model.onnx": onnx_file.read_bytes()})})}))


def test_several_models_are_a_question_that_names_them(unpacked, onnx_file):
    data = onnx_file.read_bytes()

    with pytest.raises(NeedsInput, match=r"2 models .*: german, polish\?"):
        unpacked(zipped({"german/model.onnx": data, "polish/model.onnx": data}))


def test_of_a_repository_the_one_folder_that_is_a_model_is_taken(unpacked, onnx_file):
    path, report = unpacked(
        zipped({"code/train.py": b"import torch\n", "README.md": b"# Net", "net/model.onnx": onnx_file.read_bytes()})
    )

    assert describe(path).descriptor.format is Format.ONNX, report


def _link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (tarred({"../escape": b"x"}), "leaves its folder"),
        (tarred({"/etc/escape": b"x"}), "is absolute"),
        (zipped({"../escape": b"x"}), "leaves its folder"),
        (tarred({"a": b"x"}, [_link("b", "a", tarfile.SYMTYPE)]), "holds a link"),
        (tarred({"a": b"x"}, [_link("b", "a", tarfile.LNKTYPE)]), "holds a link"),
        (tarred({"a": b"x"}, [_link("b", "", tarfile.CHRTYPE)]), "device or pipe"),
        (tarred({"a": b"x"}, [_link("b", "", tarfile.FIFOTYPE)]), "device or pipe"),
        (tarred({"a": b"x", "A": b"y"}), "have one name"),
        (tarred({"a": b"x", "a/b": b"y"}), "have one name"),
        (tarred({"evil\n[31m": b"x"}), "control characters"),
    ],
)
def test_what_leads_out_or_is_no_file_is_refused_in_one_sentence(unpacked, tmp_path, data, said):
    with pytest.raises(Quarantined, match=said) as refusal:
        unpacked(data)

    assert str(refusal.value.args[0]).count(". ") == 0 and refusal.value.hint
    assert not (tmp_path / "escape").exists()


def test_a_bomb_ends_at_its_ratio(unpacked):
    with pytest.raises(LimitExceeded, match="times its size"):
        unpacked(gzip.compress(bytes(200 << 20), 9))


def test_more_bytes_files_or_folders_than_allowed_end_it(unpacked, tmp_path):
    for options, data in (
        ({"max_bytes": 1000}, {"a": bytes(1001)}),
        ({"max_files": 3}, {str(number): b"x" for number in range(4)}),
        ({"max_depth": 2}, {"a/b/c": b"x"}),
    ):
        for pack in (tarred, zipped):
            with pytest.raises(LimitExceeded):
                unpacked(pack(data), **options)
            for folder in ("in", "out"):
                shutil.rmtree(tmp_path / folder)


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.95])
def test_a_cut_archive_is_told_to_be_broken(unpacked, keep):
    data = gzip.compress(tarred({"model.bin": random.Random(0).randbytes(50_000), "b": b"x"}))

    with pytest.raises(ModelFailed, match="broken"):
        unpacked(data[: int(len(data) * keep)])


def test_an_empty_archive_is_told_so(unpacked):
    with pytest.raises(ModelFailed, match="holds no file"):
        unpacked(tarred({"net/.DS_Store": b"x"}))


def test_a_wrong_checksum_is_told(unpacked):
    data = bytearray(zipped({"a.bin": b"some bytes", "b.bin": b"x"}))
    at = data.index(b"PK\x01\x02")
    for start in (14, at + 16):
        data[start : start + 4] = b"\1\2\3\4"

    with pytest.raises(ModelFailed, match="checksum"):
        unpacked(bytes(data))


def test_a_torchserve_archive_gives_its_serialized_model(unpacked, torch_files):
    manifest = {"model": {"modelName": "net", "serializedFile": "traced.pt", "handler": "image_classifier"}}
    path, report = unpacked(
        zipped(
            {
                "MAR-INF/MANIFEST.json": json.dumps(manifest).encode(),
                "traced.pt": (torch_files / "traced.pt").read_bytes(),
                "handler.py": b"import os\nos.system('id')\n",
                "index_to_name.json": b"{}",
            }
        )
    )

    assert describe(path).descriptor.format is Format.TORCHSCRIPT
    assert "handler" in report.notes[0]


def test_a_torchserve_archive_without_a_serialized_model_says_what_to_do(unpacked):
    with pytest.raises(ModelFailed, match="no serialized model") as refusal:
        unpacked(zipped({"MAR-INF/MANIFEST.json": b'{"model": {"modelName": "net"}}', "handler.py": b""}))

    assert "torch.export.save" in refusal.value.hint


@pytest.mark.parametrize("pack", [zipped, tarred, lambda members: gzip.compress(tarred(members))])
def test_danger_in_an_archive_is_quarantined_before_it_is_unpacked(tmp_path, refused, pack):
    path = tmp_path / "model"
    path.write_bytes(pack({"net/model.pkl": EVIL}))

    refused(path, "quarantined")


def test_danger_two_archives_deep_is_quarantined_after_unpacking_at_the_latest(unpacked, tmp_path, refused):
    path, _ = unpacked(gzip.compress(zipped({"x/model.bin": EVIL, "x/config.json": b"{}"})))

    refused(path, "quarantined")


@pytest.mark.skipif(not can_unzstd(), reason="this Python reads no Zstandard")
def test_zstandard_is_unpacked_where_python_reads_it(unpacked, onnx_file):
    import zstandard

    path, _ = unpacked(zstandard.compress(tarred({"net/model.onnx": onnx_file.read_bytes()})))

    assert path.read_bytes() == onnx_file.read_bytes()
