from __future__ import annotations

from pathlib import Path

import pytest

from modelium.expected import expected_toolchain


@pytest.mark.parametrize(
    ("name", "toolchain"),
    [("a.pt", "torch"), ("a.B.ONNX", "onnx"), ("forest.joblib", "sklearn"), ("net.keras", "tensorflow"), ("a", None),
     ("model.tar.gz", None)],
)  # fmt: skip
def test_a_files_name_lets_a_toolchain_be_expected(name: str, toolchain: str | None, tmp_path: Path) -> None:
    assert expected_toolchain(f"file:///drop/{name}", tmp_path / "blob") == toolchain


def test_a_folder_is_told_by_what_it_holds_not_by_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "net.onnx"
    folder.mkdir()
    assert expected_toolchain("net.onnx", folder) is None
    (folder / "config.json").touch()
    assert expected_toolchain("net.onnx", folder) == "torch"
