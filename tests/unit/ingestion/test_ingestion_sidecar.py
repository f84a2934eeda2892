from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestion import sidecar
from schemas.errors import InvalidDocument, NeedsInput
from schemas.sidecar import Sidecar


def test_a_full_sidecar_is_read_with_its_companions(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("class Net: ...\n")
    (tmp_path / "s.npz").write_bytes(b"npz")
    (tmp_path / "a.pth").write_bytes(b"w")
    (tmp_path / "a.pth.modelium.yaml").write_text(
        "name: digits\n"
        "inputs:\n  - {name: image, dtype: float32, shape: [batch, 1, 8, 8]}\n"
        "outputs: [scores]\n"
        "module: {file: net.py, class_name: Net, args: {width: 16, scale: 0.5, bias: true, note: null}}\n"
        "samples: s.npz\n"
        "labels: ['0', '1']\n"
        "target: {precisions: [fp32, int8]}\n"
    )
    found = sidecar.read(tmp_path / "a.pth")
    assert found is not None
    assert found.sidecar.inputs[0].shape == ("batch", 1, 8, 8)
    assert found.sidecar.module is not None
    assert found.sidecar.module.args == {"width": 16, "scale": 0.5, "bias": True, "note": None}
    assert found.companions == {"net.py": tmp_path / "net.py", "s.npz": tmp_path / "s.npz"}


def test_a_folder_has_its_sidecar_inside(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    assert sidecar.read(tmp_path / "m") is None
    (tmp_path / "m" / "modelium.yaml").write_text("task: feature-extraction\n")
    found = sidecar.read(tmp_path / "m")
    assert found is not None and found.sidecar.task == "feature-extraction"


def test_an_empty_sidecar_says_nothing() -> None:
    assert sidecar.parse("") == sidecar.parse("# nothing\n") == Sidecar()


@pytest.mark.parametrize(
    ("text", "pointer", "says"),
    [
        ("colour: red", "/", "unknown 'colour'"),
        ("name: Not A Label", "/name", "/name"),
        ("inputs: [{name: x, shape: [1.5]}]", "/inputs/0/shape/0", "/inputs/0/shape/0"),
        ("module: {file: ../x.py, class_name: A}", "/module/file", "plain relative path"),
        ("samples: /etc/passwd", "/samples", "plain relative path"),
        ("target: {precisions: [int3]}", "/target/precisions/0", "/target/precisions/0"),
        ("- a list", "", "list"),
        ("a: &x 1\nb: *x", "", "anchors and aliases"),
        ("a: !!python/object/apply:os.system ['x']", "", "tags"),
        ("a: !!str 1", "", "tags"),
        ("task: x\ntask: y", "", "twice"),
        ("1: x", "", "keys must be text"),
        ("<<: {task: x}", "/", "unknown '<<'"),
        ("a: [1", "", "line"),
        ("a: 1\n---\nb: 2", "", "not valid YAML"),
        ("[" * 3000, "", "levels deep"),
        ("a: " + "9" * 50, "", "digits"),
        ("a: 1e999", "", "too large"),
        ("a: \x07", "", "not valid YAML"),
    ],
)
def test_a_faulty_sidecar_is_refused_at_its_pointer(text: str, pointer: str, says: str) -> None:
    with pytest.raises(InvalidDocument, match="sidecar") as refused:
        sidecar.parse(text)
    assert says in str(refused.value)
    assert refused.value.facts["pointer"].startswith(pointer)  # type: ignore[union-attr]


def test_words_that_older_yaml_took_for_booleans_and_dates_are_text() -> None:
    parsed = sidecar.parse("task: no\nlicense: 2024-01-01\noutputs: [yes, on, 0x10, 1:30]\nlabels: ['1', off]\n")
    assert (parsed.task, parsed.license) == ("no", "2024-01-01")
    assert parsed.outputs == ("yes", "on", "0x10", "1:30")


def test_bytes_that_are_not_utf8_are_refused() -> None:
    with pytest.raises(InvalidDocument, match="UTF-8"):
        sidecar.parse(b"task: \xff")


def test_a_sidecar_over_its_size_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pt.modelium.yaml").write_bytes(b"#" * (sidecar.MAX_BYTES + 1))
    with pytest.raises(InvalidDocument, match="262144 are allowed"):
        sidecar.read(tmp_path / "a.pt")


def test_a_missing_companion_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.pt.modelium.yaml").write_text("samples: s.npz\n")
    with pytest.raises(NeedsInput, match=r"names s.npz, which is not there.*Copy s.npz into") as asked:
        sidecar.read(tmp_path / "a.pt")
    assert asked.value.facts["pointer"] == "/samples"


def test_a_companion_or_sidecar_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"s")
    (tmp_path / "s.npz").symlink_to(tmp_path / "secret")
    (tmp_path / "a.pt.modelium.yaml").write_text("samples: s.npz\n")
    with pytest.raises(InvalidDocument, match="link"):
        sidecar.read(tmp_path / "a.pt")
    (tmp_path / "b.pt.modelium.yaml").symlink_to(tmp_path / "secret")
    with pytest.raises(InvalidDocument, match="link"):
        sidecar.read(tmp_path / "b.pt")


def test_code_over_its_size_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_bytes(b"#" * (sidecar.MAX_CODE_BYTES + 1))
    (tmp_path / "a.pt.modelium.yaml").write_text("module: {file: net.py, class_name: A}\n")
    with pytest.raises(InvalidDocument, match="1048576 are allowed"):
        sidecar.read(tmp_path / "a.pt")


@given(st.one_of(st.text(), st.text(alphabet="ab:{}[]-&*!|>'\"#%?, \n\t<=0.1e~"), st.binary()))
def test_any_text_is_a_sidecar_or_an_invalid_document(text: str | bytes) -> None:
    try:
        assert isinstance(sidecar.parse(text), Sidecar)
    except InvalidDocument as refused:
        assert "pointer" in refused.facts
