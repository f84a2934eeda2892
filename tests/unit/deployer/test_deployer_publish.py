from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deployer import Published, prune, publish, rollback, undeploy
from deployer.config_checks import check_entry
from deployer.model_files import copy_file
from deployer.publish import active_version, versions
from schemas.deployment import EntrySpec
from schemas.errors import Conflict, NotFound

MakeSpec = Callable[..., EntrySpec]


def put(site: Any, spec: EntrySpec, content: str) -> Published:
    return publish(spec, site.model(content), site.repository, site.archive)


def test_a_published_entry_is_complete_and_readable_by_any_user(site: Any, make_spec: MakeSpec) -> None:
    published = put(site, make_spec(), "first")
    assert check_entry(published.entry) == ()
    assert published.config == (published.entry / "config.pbtxt").read_text()
    assert (published.entry / "1" / "model.onnx.data").read_text() == "weights of first"
    assert (published.entry / "labels-1.txt").read_text() == "no\nyes 1\n"
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in published.entry.rglob("*"))
    assert (site.archive / "iris" / "1" / "config.pbtxt").read_text() == published.config


def test_files_are_copied_and_never_linked_to_the_store(site: Any, make_spec: MakeSpec) -> None:
    published = put(site, make_spec(), "first")
    stored = site.model("first") / "model.onnx"
    assert stored.stat().st_ino != (published.entry / "1" / "model.onnx").stat().st_ino
    assert stored.stat().st_nlink == 1


def test_a_file_of_any_name_becomes_model_onnx(site: Any, make_spec: MakeSpec) -> None:
    site.root.mkdir(exist_ok=True)
    stored = site.root / ("a" * 64)
    stored.write_text("bytes")
    publish(make_spec(), stored, site.repository, site.archive)
    assert site.served() == "bytes"


def test_a_folders_named_model_keeps_its_external_data_beside_it(site: Any, make_spec: MakeSpec) -> None:
    folder = site.root / "dropped"
    (folder / "onnx" / "weights").mkdir(parents=True)
    (folder / "onnx" / "encoder.onnx").write_text("graph")
    (folder / "onnx" / "model.onnx").write_text("another model")
    (folder / "onnx" / "weights" / "0").write_text("w")
    published = publish(make_spec(), folder, site.repository, site.archive, model_entry="onnx/encoder.onnx")
    assert site.served() == "graph"
    assert (published.entry / "1" / "weights" / "0").read_text() == "w"


def test_nothing_that_a_server_would_execute_is_copied(site: Any, make_spec: MakeSpec) -> None:
    folder = site.model("hostile")
    (folder / "libtriton_onnxruntime.so").write_bytes(b"\x7fELF....")
    (folder / "innocent.data").write_bytes(b"\x7fELF....")
    (folder / "model.py").write_text("import os")
    (folder / "config.pbtxt").write_text('backend: "python"')
    (folder / "passwd").symlink_to("/etc/passwd")
    (folder / "sub").symlink_to("/etc")
    published = put(site, make_spec(), "hostile")
    assert sorted(path.name for path in (published.entry / "1").iterdir()) == ["model.onnx", "model.onnx.data"]


def test_a_link_in_the_place_of_the_model_is_refused(site: Any, make_spec: MakeSpec) -> None:
    folder = site.root / "linked"
    folder.mkdir()
    (folder / "model.onnx").symlink_to("/etc/hostname")
    with pytest.raises(NotFound):
        publish(make_spec(), folder, site.repository, site.archive)
    assert not (site.repository / "iris").exists()


def test_the_next_version_is_served_and_the_previous_one_kept(site: Any, make_spec: MakeSpec) -> None:
    put(site, make_spec(1), "first")
    published = put(site, make_spec(2), "second")
    assert site.served() == "second" and versions("iris", site.repository) == (1, 2)
    assert check_entry(published.entry) == ()


def test_a_rollback_restores_exactly_what_was_served(site: Any, make_spec: MakeSpec) -> None:
    first = put(site, make_spec(1), "first")
    put(site, make_spec(2), "second")
    back = rollback("iris", 1, site.repository, site.archive)
    assert back == first and site.served() == "first"
    assert check_entry(back.entry) == ()
    assert rollback("iris", 2, site.repository, site.archive).config != first.config
    assert site.served() == "second"


def test_a_rollback_to_what_is_not_kept_names_what_is(site: Any, make_spec: MakeSpec) -> None:
    put(site, make_spec(1), "first")
    with pytest.raises(NotFound, match="Kept: 1"):
        rollback("iris", 9, site.repository, site.archive)
    with pytest.raises(NotFound):
        rollback("rose", 1, site.repository, site.archive)


def test_publishing_the_same_twice_changes_nothing(site: Any, make_spec: MakeSpec) -> None:
    assert put(site, make_spec(1), "first") == put(site, make_spec(1), "first")


def test_a_served_version_never_changes_its_bytes(site: Any, make_spec: MakeSpec) -> None:
    put(site, make_spec(1), "first")
    with pytest.raises(Conflict):
        put(site, make_spec(1), "other")
    assert site.served() == "first"


def test_an_entry_that_is_not_ours_is_left_alone(site: Any, make_spec: MakeSpec) -> None:
    foreign = site.repository / "iris"
    foreign.mkdir(parents=True)
    with pytest.raises(Conflict):
        put(site, make_spec(1), "first")
    with pytest.raises(Conflict):
        undeploy("iris", site.repository, site.archive)
    assert foreign.is_dir()


def test_undeploying_removes_the_entry_and_a_name_can_be_used_again(site: Any, make_spec: MakeSpec) -> None:
    put(site, make_spec(1), "first")
    undeploy("iris", site.repository, site.archive)
    assert list(site.repository.iterdir()) == []
    with pytest.raises(NotFound):
        undeploy("iris", site.repository, site.archive)
    put(site, make_spec(2), "second")
    assert site.served() == "second"


def test_pruning_keeps_the_served_version_and_the_newest(site: Any, make_spec: MakeSpec) -> None:
    for version in (1, 2, 3, 4):
        put(site, make_spec(version), f"model {version}")
    rollback("iris", 1, site.repository, site.archive)
    assert prune("iris", 1, site.repository) == (2, 3)
    assert versions("iris", site.repository) == (1, 4) and site.served() == "model 1"
    assert check_entry(site.repository / "iris") == ()


def test_two_at_once_take_turns(site: Any, make_spec: MakeSpec) -> None:
    for version in range(1, 7):
        site.model(f"model {version}")
    threads = [
        threading.Thread(target=put, args=(site, make_spec(version), f"model {version}")) for version in range(1, 7)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert versions("iris", site.repository) == (1, 2, 3, 4, 5, 6)
    assert check_entry(site.repository / "iris") == ()
    assert site.served() == f"model {active_version('iris', site.repository)}"


KILLED = """
import os, signal, sys
from pathlib import Path
from deployer import publish, rollback, undeploy
from schemas.deployment import EntrySpec

action, spec, model, root, at = sys.argv[1:]
spec, root = EntrySpec.model_validate_json(spec), Path(root)

def die(phase):
    if phase == at:
        os.kill(os.getpid(), signal.SIGKILL)

places = (root / "model_repository", root / "archive")
if action == "publish":
    publish(spec, Path(model), *places, on_phase=die)
elif action == "rollback":
    rollback(spec.name, spec.version, *places, on_phase=die)
else:
    undeploy(spec.name, *places, on_phase=die)
"""


def killed(action: str, spec: EntrySpec, model: Path, root: Path, at: str) -> bool:
    """Run the action and kill -9 it at a phase; return whether it got there."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, action, spec.model_dump_json(), model, root, at],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert done.returncode in (0, -9), done.stderr
    return done.returncode == -9


@pytest.mark.parametrize("phase", ["copied", "staged", "archived", "published"])
def test_a_first_publish_killed_anywhere_leaves_all_or_nothing(site: Any, make_spec: MakeSpec, phase: str) -> None:
    model = site.model("first")
    assert killed("publish", make_spec(1), model, site.root, phase)
    entry = site.repository / "iris"
    assert entry.exists() == (phase == "published")
    if entry.exists():
        assert check_entry(entry) == ()
    put(site, make_spec(1), "first")
    assert site.served() == "first" and check_entry(entry) == ()
    assert [path.name for path in (site.root / ".staging").iterdir()] == ["iris.lock"]


@pytest.mark.parametrize("phase", ["copied", "staged", "version", "archived", "labels", "committed", "published"])
def test_the_next_version_killed_anywhere_leaves_one_of_the_two_served(
    site: Any, make_spec: MakeSpec, phase: str
) -> None:
    put(site, make_spec(1), "first")
    assert killed("publish", make_spec(2), site.model("second"), site.root, phase)
    assert site.served() == ("second" if phase in ("committed", "published") else "first")
    assert check_entry(site.repository / "iris") == ()
    # The retry may even bring other bytes: another candidate won.
    if phase not in ("committed", "published"):
        put(site, make_spec(2), "another")
        assert site.served() == "another" and check_entry(site.repository / "iris") == ()


@pytest.mark.parametrize("phase", ["staged", "labels", "committed"])
def test_a_rollback_killed_anywhere_leaves_one_of_the_two_served(site: Any, make_spec: MakeSpec, phase: str) -> None:
    put(site, make_spec(1), "first")
    put(site, make_spec(2), "second")
    assert killed("rollback", make_spec(1), site.root, site.root, phase)
    assert site.served() == ("first" if phase == "committed" else "second")
    assert check_entry(site.repository / "iris") == ()


def test_an_undeploy_that_is_killed_has_removed_the_entry(site: Any, make_spec: MakeSpec) -> None:
    put(site, make_spec(1), "first")
    assert killed("undeploy", make_spec(1), site.root, site.root, "removed")
    assert not (site.repository / "iris").exists()
    put(site, make_spec(2), "second")
    assert [path.name for path in (site.root / ".staging").iterdir()] == ["iris.lock"]


@pytest.mark.parametrize("size_bytes", [0, 1, (1 << 20) - 1, 1 << 20, (3 << 20) + 7])
def test_files_of_any_size_are_copied_whole_and_reach_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size_bytes: int
) -> None:
    content = random.Random(size_bytes).randbytes(size_bytes)
    (tmp_path / "model").write_bytes(content)
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_size))
    copy_file(tmp_path / "model", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == content
    assert synced == [size_bytes]
