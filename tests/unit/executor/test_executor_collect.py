from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from executor.collect import clean, read_outputs, read_result
from executor.watch import Log, Progress, WorkspaceWatch
from executor.workspace import Workspace, remove_tree, sweep
from schemas.errors import LimitExceeded, ModeliumError, SandboxCrashed
from schemas.step_run import Limits

LIMITS = Limits(workspace_bytes=1 << 20, workspace_files=16, result_bytes=4096)
REPORT = {"opset": 17, "operators": {}, "inputs": [], "outputs": [], "size_bytes": 1}
GOOD = {"ok": True, "report": REPORT}
FAILED = {"ok": False, "error": {"code": "conversion_failed", "message": "No."}}
FROZEN = {"ok": False, "error": {"code": "sizes_frozen", "message": "At one size only."}}


def result_of(tmp_path: Path, content: bytes):
    (tmp_path / "result.json").write_bytes(content)
    return read_result(tmp_path, "onnx_optimize", LIMITS)


def test_a_valid_result_is_read(tmp_path):
    assert result_of(tmp_path, json.dumps(GOOD).encode()).ok
    assert result_of(tmp_path, json.dumps(FAILED).encode()).error.code == "conversion_failed"
    assert result_of(tmp_path, json.dumps(FROZEN).encode()).error.code == "sizes_frozen"


@pytest.mark.parametrize(
    "document",
    [
        {},
        [],
        None,
        "ok",
        {"ok": True},
        {"ok": True, "report": {}},
        {"ok": True, "report": {**REPORT, "extra": 1}},
        {**GOOD, "extra": 1},
        {**GOOD, "error": FAILED["error"]},
        {"ok": False},
        {"ok": False, "error": {"code": "cancelled", "message": "A step cannot cancel."}},
        {"ok": False, "error": {"code": "sandbox_crashed", "message": "Try again for ever."}},
        {"ok": False, "error": {"code": "made up", "message": "x"}},
        {"ok": False, "error": {"code": "internal", "message": "x" * 3000}},
        {**GOOD, "run_s": -1},
        {**GOOD, "outputs": {"model": 1}},
        {**GOOD, "schema_version": 2},
    ],
)
def test_a_forged_result_is_a_crash(tmp_path, document):
    with pytest.raises(SandboxCrashed):
        result_of(tmp_path, json.dumps(document).encode())


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[" * 4000, b'{"ok": true, "run_s": NaN}', b'{"ok": ' + b"9" * 4050 + b"}"]
)
def test_what_is_not_json_is_a_crash(tmp_path, content):
    with pytest.raises(SandboxCrashed):
        result_of(tmp_path, content)


def test_a_result_that_is_too_large_is_a_limit_with_its_numbers(tmp_path):
    with pytest.raises(LimitExceeded) as caught:
        result_of(tmp_path, b" " * 5000)
    assert caught.value.facts == {"limit": 4096, "actual": 5000}


def test_a_result_that_is_no_plain_file_is_a_crash(tmp_path):
    target = tmp_path / "target"
    target.write_text(json.dumps(GOOD))
    path = tmp_path / "result.json"
    for make in (
        lambda: path.symlink_to(target),
        lambda: path.hardlink_to(target),
        lambda: os.mkfifo(path),
        lambda: path.mkdir(),
    ):
        make()
        with pytest.raises(SandboxCrashed):
            read_result(tmp_path, "onnx_optimize", LIMITS)
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    with pytest.raises(SandboxCrashed, match="wrote no result"):
        read_result(tmp_path, "onnx_optimize", LIMITS)


def test_terminal_escapes_in_an_error_are_cleaned(tmp_path):
    document = {"ok": False, "error": {"code": "internal", "message": "a\x1b[2Jb", "facts": {"k": "\x07"}}}
    error = result_of(tmp_path, json.dumps(document).encode()).error
    assert error.message == "a\ufffd[2Jb" and error.facts == {"k": "\ufffd"}


@settings(deadline=None)  # it writes files
@given(st.binary(max_size=300))
def test_no_bytes_make_reading_a_result_fail_otherwise(tmp_path_factory, content):
    with pytest.raises(ModeliumError):
        result_of(tmp_path_factory.mktemp("result"), content)


def test_plain_outputs_are_accepted_and_get_plain_modes(tmp_path):
    (tmp_path / "model" / "sub").mkdir(parents=True)
    file = tmp_path / "model" / "sub" / "model.onnx"
    file.write_bytes(b"x")
    file.chmod(0o6755)
    (tmp_path / "model" / "sub").chmod(0o700)
    found = read_outputs(tmp_path, {"model": "model", "one": "model/sub/model.onnx"}, LIMITS)
    assert found == {"model": tmp_path / "model", "one": file}
    assert file.stat().st_mode & 0o7777 == 0o644
    assert (tmp_path / "model" / "sub").stat().st_mode & 0o7777 == 0o755


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "", ".", "//x", "absent", "a\0b"])
def test_a_path_that_leaves_the_folder_or_leads_nowhere_is_a_crash(tmp_path, path):
    with pytest.raises(SandboxCrashed):
        read_outputs(tmp_path, {"model": path}, LIMITS)


@pytest.mark.parametrize("name", ["", "../model", "a/b", ".hidden", "x" * 100, "a\nb"])
def test_a_name_that_is_no_plain_name_is_a_crash(tmp_path, name):
    (tmp_path / "model").mkdir()
    with pytest.raises(SandboxCrashed):
        read_outputs(tmp_path, {name: "model"}, LIMITS)


def _socket(path: Path) -> None:
    os.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.symlink_to("/etc/passwd"),
        lambda path: path.symlink_to("."),
        lambda path: path.hardlink_to(path.parent / "other"),
        lambda path: os.mkfifo(path),
        _socket,
        pytest.param(
            lambda path: os.mknod(path, 0o60600, os.makedev(7, 0)),
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices"),
        ),
        lambda path: (path.parent / "bad\x1bname").touch(),
        lambda path: Path(os.fsdecode(bytes(path.parent) + b"/\xff")).touch(),
    ],
)
def test_links_devices_pipes_and_odd_names_are_a_crash(tmp_path, monkeypatch, make):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "other").touch()
    make(folder / "x")
    with pytest.raises(SandboxCrashed):
        read_outputs(tmp_path, {"model": "model"}, LIMITS)


def test_a_link_on_the_way_to_an_output_is_a_crash(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").touch()
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(SandboxCrashed):
        read_outputs(tmp_path, {"model": "link/file"}, LIMITS)


@pytest.mark.parametrize("what", ["bytes", "files", "levels"])
def test_outputs_beyond_the_limits_say_which(tmp_path, what):
    folder = tmp_path / "model"
    folder.mkdir()
    if what == "bytes":
        with (folder / "sparse").open("wb") as file:
            file.truncate(1 << 30)
    elif what == "files":
        for n in range(20):
            (folder / str(n)).touch()
    else:
        folder.joinpath(*"d" * 40).mkdir(parents=True)
    with pytest.raises(LimitExceeded, match=what) as caught:
        read_outputs(
            tmp_path, {"model": "model"}, LIMITS.model_copy(update={"workspace_files": 17 if what == "files" else 99})
        )
    assert caught.value.facts["actual"] > caught.value.facts["limit"]


@given(st.text())
def test_cleaned_text_has_no_control_characters(text):
    assert all(c in "\n\t" or c.isprintable() or c.isspace() for c in clean(text))


@settings(deadline=None)  # the first example on a busy machine takes its time
@given(st.lists(st.binary(max_size=200)))
def test_a_log_never_grows_beyond_its_limit(chunks):
    heard: list[str] = []
    log = Log(256, heard.append)
    for chunk in chunks:
        log.feed(chunk)
    text = log.finish()
    assert text == "".join(heard) and len(text) <= 256 + 100


def test_text_cut_in_the_middle_of_a_character_is_whole_again():
    log = Log(100, None)
    for byte in "naïve ✓".encode():
        log.feed(bytes([byte]))
    assert log.finish() == "naïve ✓"


@settings(deadline=None)
@given(st.lists(st.binary(max_size=100)))
def test_no_bytes_make_progress_fail_or_leave_its_range(chunks):
    heard: list[tuple[float, str]] = []
    progress = Progress(lambda fraction, message: heard.append((fraction, message)))
    for chunk in chunks:
        progress.feed(chunk)
    progress.flush(final=True)
    assert all(0 <= fraction <= 1 for fraction, _ in heard)


def test_progress_in_pieces_is_put_together():
    heard: list[tuple[float, str]] = []
    progress = Progress(lambda fraction, message: heard.append((fraction, message)))
    for byte in b'{"fraction": 0.25, "message": "a quarter"}\n':
        progress.feed(bytes([byte]))
    assert heard == [(0.25, "a quarter")]


def test_a_scan_does_not_follow_links_out(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "root").symlink_to("/")
    assert WorkspaceWatch(tmp_path, LIMITS).scan() is None


def test_a_workspace_in_use_is_not_swept_and_a_left_one_is(tmp_path):
    mine = Workspace(tmp_path)
    left = tmp_path / "step-1-left"
    (left / "out" / "deep").mkdir(parents=True)
    (left / "out" / "deep" / "link").symlink_to("/etc")
    assert sweep(tmp_path) == 1
    assert mine.path.is_dir() and not left.exists()
    mine.remove()
    mine.remove()
    assert not any(tmp_path.iterdir())


def test_removing_a_tree_leaves_what_its_links_point_at(tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "link").symlink_to(kept)
    (tree / "below").mkdir()
    (tree / "below" / "link").symlink_to(kept)
    remove_tree(tree)
    assert (kept / "file").exists() and not tree.exists()
