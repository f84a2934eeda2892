"""Archives that lie: written byte by byte here, read by the scan, opened by nothing else."""

from __future__ import annotations

import gzip
import io
import os
import random
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analyzer.content_scan import ContentScan
from analyzer.scan_stream import Budget
from analyzer.security import scan
from schemas.descriptor import SecurityFinding, Severity

D, U = Severity.DANGER, Severity.UNKNOWN
EVIL = b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00id\x85R."
GOOD = b"\x80\x02}."


def scanned(tmp_path: Path, data: bytes, name: str = "model.pt") -> tuple[SecurityFinding, ...]:
    path = tmp_path / name
    path.write_bytes(data)
    return scan(path)


def codes(found: tuple[SecurityFinding, ...], severity: Severity = D) -> set[str]:
    return {f.code for f in found if f.severity is severity}


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def torch_zip(pickled: bytes = GOOD, method: int = zipfile.ZIP_STORED, **more: bytes) -> bytes:
    return zipped(
        {"archive/data.pkl": pickled, "archive/version": b"3\n", "archive/data/0": b"\0" * 64, **more}, method
    )


def patched(data: bytes, signature: bytes, offset: int, value: bytes, which: int = 0) -> bytes:
    at = -1
    for _ in range(which + 1):
        at = data.index(signature, at + 1)
    return data[: at + offset] + value + data[at + offset + len(value) :]


CENTRAL, LOCAL, END = b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"


def test_an_honest_zip_is_clean(tmp_path: Path) -> None:
    assert scanned(tmp_path, torch_zip()) == ()
    assert scanned(tmp_path, torch_zip(method=zipfile.ZIP_DEFLATED)) == ()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(
    "name", ["archive/data.pkl", "archive/data/7", "archive/x.png", "archive/.data/serialization_id"]
)
def test_a_hostile_pickle_in_any_member_is_danger(tmp_path: Path, method: int, name: str) -> None:
    assert "pickle-global" in codes(scanned(tmp_path, zipped({"archive/data.pkl": GOOD, name: EVIL}, method)))


TRICKS = {
    "wrong checksum in both headers": (lambda z: patched(patched(z, CENTRAL, 16, b"abcd"), LOCAL, 14, b"abcd"), None),
    "encrypted in the directory": (lambda z: patched(z, CENTRAL, 8, b"\x01"), "zip-flags"),
    "encrypted in the local header": (lambda z: patched(z, LOCAL, 6, b"\x01"), "zip-flags"),
    "strongly encrypted": (lambda z: patched(z, CENTRAL, 8, b"\x40"), "zip-flags"),
    "masked": (lambda z: patched(z, CENTRAL, 9, b"\x20"), "zip-flags"),
    "another name in the local header": (lambda z: patched(z, LOCAL, 30, b"brchive/data.pkx"), "zip-mismatch"),
    "another size in the local header": (lambda z: patched(z, LOCAL, 22, b"\x01\0\0\0"), "zip-mismatch"),
    "another method in the local header": (lambda z: patched(z, LOCAL, 8, b"\x08"), "zip-mismatch"),
    "another checksum in the local header": (lambda z: patched(z, LOCAL, 14, b"abcd"), "zip-mismatch"),
    "fewer members announced": (lambda z: patched(z, END, 10, b"\x01"), "zip-mismatch"),
    "trailing data": (lambda z: z + b"trailing", "zip-trailing"),
    "prefix": (lambda z: b"prefix" + z, "zip-prefix"),
    "pickle before": (lambda z: GOOD + z, "zip-prefix"),
    "hidden behind a picture": (lambda z: b"\x89PNG\r\n\x1a\n" + b"\0" * 100 + z, "zip-prefix"),
    "cut off": (lambda z: z[: z.index(CENTRAL)], None),
    "cut in the directory": (lambda z: z[: z.index(CENTRAL) + 20], None),
    "offset beyond the end": (lambda z: patched(z, CENTRAL, 42, b"\xff\xff\xff\x00", 1), "zip-mismatch"),
    "overlap": (lambda z: patched(z, CENTRAL, 42, b"\0\0\0\0", 1), "zip-overlap"),
}  # fmt: skip


@pytest.mark.parametrize("trick", TRICKS)
def test_a_trick_with_headers_blinds_nothing(tmp_path: Path, trick: str) -> None:
    change, code = TRICKS[trick]
    found = codes(scanned(tmp_path, change(torch_zip(EVIL))))
    assert "pickle-global" in found
    harmless = codes(scanned(tmp_path, change(torch_zip(GOOD)))), codes(scanned(tmp_path, change(torch_zip(GOOD))), U)
    assert (code in harmless[0]) if code else (harmless[0] or harmless[1])


def test_a_wrong_checksum_alone_is_unknown(tmp_path: Path) -> None:
    data = patched(patched(torch_zip(), CENTRAL, 16, b"\0\0\0\0"), LOCAL, 14, b"\0\0\0\0")
    assert codes(scanned(tmp_path, data), U) == {"zip-checksum"}


def test_a_member_beside_the_directory_is_danger(tmp_path: Path) -> None:
    hidden = torch_zip(EVIL)
    at = hidden.index(CENTRAL)
    whole = torch_zip()
    cut = whole.index(CENTRAL)
    data = whole[:cut] + hidden[: hidden.index(LOCAL, 4)] + whole[cut:]
    data = patched(data, END, 16, struct.pack("<I", data.index(CENTRAL)))
    assert at
    assert codes(scanned(tmp_path, data)) == {"zip-hidden"}


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicate_names_are_danger_and_both_are_read(tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", EVIL)
        archive.writestr("archive/data.pkl", GOOD)
    assert codes(scanned(tmp_path, out.getvalue())) == {"zip-duplicate", "pickle-global"}
    assert "zip-duplicate" in codes(scanned(tmp_path, zipped({"a/data.pkl": GOOD, "a/DATA.pkl": GOOD})))


@pytest.mark.parametrize(
    "name", ["../evil.py", "/etc/passwd", "a/../../b", "C:\\x", "a\\..\\b", "a\x01b", "\\\\host\\x"]
)
def test_a_path_that_leaves_the_archive_is_danger(tmp_path: Path, name: str) -> None:
    assert "archive-path" in codes(scanned(tmp_path, zipped({name: b"x"})))
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name))
    assert "archive-path" in codes(scanned(tmp_path, out.getvalue(), "x.tar"))


def test_links_in_archives_are_danger(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("link")
    info.external_attr = 0o120777 << 16
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(info, "/etc/passwd")
    assert "zip-link" in codes(scanned(tmp_path, out.getvalue()))
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert "archive-link" in codes(scanned(tmp_path, tar.getvalue()))


def tarred(name: str, data: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda d: tarred("model.bin", d),
        lambda d: gzip.compress(tarred("model.bin", d)),
        lambda d: zipped({"inner.zip": zipped({"x": d})}),
        lambda d: zipped({"inner.zip": zipped({"x": d})}, zipfile.ZIP_DEFLATED),
        lambda d: zipped({"a": gzip.compress(tarred("b", zipped({"c": d})))}),
        lambda d: tarred("a", torch_zip(d)),
        lambda d: zipped({"weights.npz": zipped({"a.npy": npy(d)})}),
        lambda d: gzip.compress(zipped({"x": d})),
        lambda d: zlib.compress(gzip.compress(d)),
    ],
)
def test_a_pickle_in_archives_in_archives_is_seen(tmp_path: Path, wrap) -> None:  # type: ignore[no-untyped-def]
    assert "pickle-global" in codes(scanned(tmp_path, wrap(EVIL), "harmless.onnx"))


def test_nesting_beyond_the_limit_is_not_clean(tmp_path: Path) -> None:
    data = EVIL
    for _ in range(12):
        data = zipped({"x": data})
    assert scanned(tmp_path, data)


@pytest.mark.parametrize(
    "magic", [b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07\x00", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18"]
)
def test_an_archive_that_cannot_be_looked_into_is_unknown(tmp_path: Path, magic: bytes) -> None:
    assert codes(scanned(tmp_path, magic + b"\0" * 64), U) == {"archive-unreadable"}
    assert codes(scanned(tmp_path, torch_zip(**{"archive/x": magic + b"\0" * 64})), U) == {"archive-unreadable"}


def npy(data: bytes, descr: str = "|O") -> bytes:
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': (1,), }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def test_object_arrays_are_never_clean_and_their_pickle_is_judged(tmp_path: Path) -> None:
    assert codes(scanned(tmp_path, npy(EVIL), "x.npy")) == {"pickle-global"}
    assert codes(scanned(tmp_path, npy(GOOD), "x.npy"), U) == {"npy-objects"}
    assert codes(scanned(tmp_path, zipped({"a.npy": npy(EVIL)}), "x.npz")) == {"pickle-global"}
    assert scanned(tmp_path, npy(b"\0" * 8, "<f8"), "x.npy") == ()
    assert codes(scanned(tmp_path, npy(b"", "f8,O"), "x.npy"), U) >= {"npy-objects"}


def test_a_bomb_is_danger_and_is_not_unpacked_whole(tmp_path: Path) -> None:
    bombs = {
        "gzip": gzip.compress(b"\0" * (16 << 20)),
        "zip": zipped({"archive/data.pkl": b"\0" * (16 << 20)}, zipfile.ZIP_DEFLATED),
        "nested": gzip.compress(gzip.compress(b"\x80\x02" + b"N0" * (2 << 20))),
    }
    for kind, data in bombs.items():
        looked = ContentScan(budget=Budget(unpacked_bytes=1 << 20))
        looked.content(io.BytesIO(data), len(data), "", name="x", depth=0)
        assert "scan-limit" in codes(looked.result()), kind
    ratio = ContentScan(budget=Budget(ratio_from_bytes=1 << 20))
    ratio.content(io.BytesIO(bombs["gzip"]), len(bombs["gzip"]), "", name="x", depth=0)
    assert "scan-limit" in codes(ratio.result())


def test_too_many_opcodes_or_members_are_unknown() -> None:
    for data, budget in ((b"\x80\x02" + b"N0" * 9000 + b"N.", Budget(opcodes=5000)), (torch_zip(), Budget(members=2))):
        looked = ContentScan(budget=budget)
        looked.content(io.BytesIO(data), len(data), "", name="x", depth=0)
        assert "scan-limit" in codes(looked.result(), U)


def test_a_size_that_lies_is_danger(tmp_path: Path) -> None:
    data = torch_zip(GOOD + b"\0" * 100, zipfile.ZIP_DEFLATED)
    data = patched(patched(data, CENTRAL, 24, b"\x05\0\0\0"), LOCAL, 22, b"\x05\0\0\0")
    assert "zip-mismatch" in codes(scanned(tmp_path, data))


@pytest.mark.parametrize("far", [1 << 31, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
@pytest.mark.parametrize("field", ["member", "directory"])
def test_an_offset_beyond_any_file_is_danger_and_not_followed(tmp_path: Path, field: str, far: int) -> None:
    name, data = b"archive/data.pkl", GOOD
    extra = struct.pack("<HHQ", 1, 8, far if field == "member" else 0)
    local = LOCAL + struct.pack("<5H3I2H", 20, 0, 0, 0, 0, zlib.crc32(data), len(data), len(data), len(name), 0)
    central = CENTRAL + struct.pack(
        "<6H3I5H2I", 20, 20, 0, 0, 0, 0, zlib.crc32(data), len(data), len(data), len(name), len(extra), 0, 0, 0, 0,
        0xFFFFFFFF,
    ) + name + extra  # fmt: skip
    at = len(local) + len(name) + len(data)
    start = far if field == "directory" else at
    end64 = b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 1, 1, len(central), start)
    locator = b"PK\x06\x07" + struct.pack("<IQI", 0, at + len(central), 1)
    end = END + struct.pack("<4H2IH", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    whole = local + name + data + central + end64 + locator + end
    assert codes(scanned(tmp_path, whole)) >= {"zip-mismatch"}
    assert codes(scanned(tmp_path, gzip.compress(whole))) >= {"zip-mismatch"}


@pytest.mark.parametrize(
    "source", ["torch.from_file(x, True)", "ops.aten.save(x, y)", "torch . save (x, y)", "ops.image.read_file(x)"]
)
def test_torchscript_that_reaches_files_is_danger(tmp_path: Path, source: str) -> None:
    members = {
        "archive/data.pkl": GOOD,
        "archive/constants.pkl": GOOD,
        "archive/code/__torch__.py": f"class Net(Module):\n  def forward(self):\n    return {source}\n".encode(),
    }
    assert codes(scanned(tmp_path, zipped(members))) == {"torchscript-files"}
    members["archive/code/__torch__.py"] = (
        b"class Net(Module):\n  def forward(self, save):\n    return torch.relu(save)"
    )
    assert codes(scanned(tmp_path, zipped(members))) == set()


def test_torchscript_classes_are_allowed_only_in_a_torchscript_archive(tmp_path: Path) -> None:
    pickled = b"\x80\x02c__torch__\nNet\n)\x81."
    assert codes(scanned(tmp_path, torch_zip(pickled)), U) == {"pickle-global"}
    script = {"m/data.pkl": pickled, "m/constants.pkl": b"\x80\x02).", "m/code/__torch__.py": b"class Net(Module):\n"}
    assert scanned(tmp_path, zipped(script)) == ()
    script["m/data.pkl"] = b"\x80\x02c__torch__\nNet.os\n)\x81."
    assert scanned(tmp_path, zipped(script)) != ()
    script["m/data.pkl"] = EVIL
    assert codes(scanned(tmp_path, zipped(script))) == {"pickle-global"}


def test_a_link_or_a_pipe_is_danger_and_not_opened(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "weights.bin").symlink_to("/etc/hostname")
    (folder / "deeper").symlink_to("/etc")
    os.mkfifo(folder / "pipe")
    assert [f.code for f in scan(folder) if f.severity is D] == ["special-file"] * 3


def test_findings_name_the_member_in_printable_text(tmp_path: Path) -> None:
    found = scanned(tmp_path, zipped({"\u202eevil\ud7ff": EVIL}))
    assert found[0].where.isascii()
    assert found[0].where.isprintable()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_damage_to_headers_makes_a_hostile_zip_clean(tmp_path: Path, data: st.DataObject) -> None:
    whole = bytearray(torch_zip(EVIL, data.draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))))
    for _ in range(data.draw(st.integers(1, 5))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        with zipfile.ZipFile(io.BytesIO(bytes(whole))) as archive:
            opens = any(EVIL in archive.read(name) for name in archive.namelist())
    except Exception:  # noqa: BLE001 - whatever zipfile makes of a damaged file
        opens = EVIL in whole and whole[:4] == LOCAL
    if opens:
        assert any(f.severity in (D, U) for f in scanned(tmp_path, bytes(whole)))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(),
    st.sampled_from(
        [b"PK\x03\x04", b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ\0", b"\x5d\0\0", b"\x78\x9c", b"\x93NUMPY\x01\0", b""]
    ),
)
def test_any_broken_container_ends_in_findings(tmp_path: Path, seed: int, magic: bytes) -> None:
    noise = random.Random(seed)
    scanned(tmp_path, magic + noise.randbytes(noise.randrange(600)) + noise.choice([b"", END + noise.randbytes(18)]))
