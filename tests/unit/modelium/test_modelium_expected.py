from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from modelium.context import Context
from modelium.expected import expected_toolchain
from modelium.settings import Settings
from modelium.submit import submit_path


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


def test_imports_begin_while_a_new_drop_is_stored_and_not_for_one_that_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[str, bool]] = []
    monkeypatch.setattr(Context, "prepare", lambda context, name: begun.append((name, context.home.database.exists())))
    context = Context(Settings(home=tmp_path / "home"))
    for name in ("a.pt", "b.onnx", "noted.txt"):
        (tmp_path / name).write_bytes(name.encode())
    submit_path(context, tmp_path / "a.pt")
    assert begun == [("torch", False)], "in a new home nothing is waited for"
    submit_path(context, tmp_path / "a.pt")
    submit_path(context, tmp_path / "noted.txt")
    submit_path(context, tmp_path / "b.onnx")
    assert begun[1:] == [("onnx", True)]


def test_what_a_running_service_will_work_on_is_left_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []
    monkeypatch.setattr(Context, "prepare", lambda context, name: begun.append(name))
    context = Context(Settings(home=tmp_path / "home"))
    (tmp_path / "a.pt").write_bytes(b"a")
    with context.home.up_lock.open("w") as up:
        fcntl.flock(up, fcntl.LOCK_EX)
        submit_path(context, tmp_path / "a.pt")
    assert not begun
