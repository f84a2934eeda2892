from __future__ import annotations

import json
import logging
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ingestion.arrival import Arrival
from ingestion.folder import FolderSource, drops
from schemas.errors import ModelFailed, NotFound, StorageFull, UsageError

Watch = Callable[..., FolderSource]


def _make_hf_folder(folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")


def test_what_is_there_at_the_start_is_reported(incoming: Path, watch: Watch, arrivals: Any) -> None:
    (incoming / "a.pt").write_bytes(b"a")
    _make_hf_folder(incoming / "minilm")
    watch()
    assert arrivals.wait_for(2) == ["a.pt", "minilm"]


def test_a_closed_file_is_reported_at_once(incoming: Path, watch: Watch, arrivals: Any) -> None:
    watch(settle_s=30)
    (incoming / "a.pt").write_bytes(b"a")
    assert arrivals.wait_for(1) == ["a.pt"]


def test_a_file_renamed_into_place_is_reported_when_it_has_settled(
    incoming: Path, watch: Watch, arrivals: Any, tmp_path: Path
) -> None:
    watch()
    (tmp_path / "elsewhere").write_bytes(b"a")
    (tmp_path / "elsewhere").rename(incoming / "a.pt")
    (incoming / "b.pt.part").write_bytes(b"b")
    (incoming / "b.pt.part").rename(incoming / "b.pt")
    assert arrivals.wait_for(2) == ["a.pt", "b.pt"]


def test_a_slow_copy_is_not_taken_early(incoming: Path, watch: Watch, arrivals: Any) -> None:
    watch(settle_s=0.5)
    with (incoming / "slow.pt").open("wb", buffering=0) as file:
        for _ in range(12):
            file.write(b"x" * 1000)
            time.sleep(0.1)
        assert arrivals.names == []
    arrivals.wait_for(1)
    assert [a.size_bytes for a in arrivals.all] == [12_000]


def test_a_slow_folder_copy_is_taken_whole_and_once(incoming: Path, watch: Watch, arrivals: Any) -> None:
    watch(folder_quiet_s=0.6)
    (incoming / "bert").mkdir()
    for name in ("model.safetensors", "config.json", "tokenizer.json", "vocab.txt"):
        (incoming / "bert" / name).write_bytes(b"x" * 10)
        time.sleep(0.25)
    assert arrivals.wait_for(1) == ["bert"]
    time.sleep(0.9)
    assert [(a.relative, a.size_bytes) for a in arrivals.all] == [("bert", 40)]


def test_a_folder_that_appears_whole_is_one_drop(incoming: Path, watch: Watch, arrivals: Any, tmp_path: Path) -> None:
    watch()
    _make_hf_folder(tmp_path / "minilm")
    (tmp_path / "minilm").rename(incoming / "minilm")
    arrivals.wait_for(1)
    time.sleep(0.6)
    assert arrivals.names == ["minilm"]


def test_a_folder_waits_for_the_files_its_index_names(incoming: Path, watch: Watch, arrivals: Any) -> None:
    source = watch(folder_quiet_s=0.2)
    folder = incoming / "sharded"
    folder.mkdir()
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    weight_map = {"a.weight": shards[0], "b.weight": shards[1]}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / shards[0]).write_bytes(b"1")
    time.sleep(0.8)
    assert arrivals.names == []
    assert shards[1] in source.waiting()[folder]
    (folder / shards[1]).write_bytes(b"2")
    assert arrivals.wait_for(1) == ["sharded"]


def test_a_folder_whose_index_is_never_satisfied_is_reported_in_the_end(
    incoming: Path, watch: Watch, arrivals: Any
) -> None:
    watch(folder_quiet_s=0.2, index_patience_s=0.5)
    (incoming / "sharded").mkdir()
    (incoming / "sharded" / "model.safetensors.index.json").write_text('{"weight_map": {"a": "m.safetensors"}}')
    assert arrivals.wait_for(1) == ["sharded"]


def test_a_folder_that_holds_no_model_groups_drops(incoming: Path, watch: Watch, arrivals: Any) -> None:
    watch()
    team = incoming / "teamA"
    team.mkdir()
    (team / "one.onnx").write_bytes(b"1")
    _make_hf_folder(team / "bert")
    assert arrivals.wait_for(2) == ["teamA/bert", "teamA/one.onnx"]
    (team / "two.onnx").write_bytes(b"2")
    assert arrivals.wait_for(3) == ["teamA/bert", "teamA/one.onnx", "teamA/two.onnx"]
    assert arrivals.doubled == {}


def test_an_empty_folder_may_still_become_a_model(incoming: Path, watch: Watch, arrivals: Any) -> None:
    watch(folder_quiet_s=0.3)
    (incoming / "bert").mkdir()
    time.sleep(0.7)
    (incoming / "bert" / "model.safetensors").write_bytes(b"w")
    time.sleep(0.1)
    (incoming / "bert" / "config.json").write_text("{}")
    arrivals.wait_for(1)
    time.sleep(0.5)
    assert arrivals.names == ["bert"]


def test_a_group_that_receives_a_configuration_becomes_one_model(incoming: Path, watch: Watch, arrivals: Any) -> None:
    watch()
    (incoming / "dir").mkdir()
    (incoming / "dir" / "model.bin").write_bytes(b"w")
    assert arrivals.wait_for(1) == ["dir/model.bin"]
    (incoming / "dir" / "config.json").write_text("{}")
    assert arrivals.wait_for(2) == ["dir", "dir/model.bin"]


def test_onnx_with_external_data_is_one_drop(incoming: Path, watch: Watch, arrivals: Any) -> None:
    watch()
    for name in ("big", "many"):
        (incoming / name).mkdir()
        (incoming / name / "model.onnx").write_bytes(b"graph")
    (incoming / "big" / "model.onnx.data").write_bytes(b"data")
    (incoming / "many" / "encoder.weight").write_bytes(b"data")
    arrivals.wait_for(2)
    time.sleep(0.4)
    assert arrivals.names == ["big", "many"]


def test_unfinished_hidden_and_backup_files_are_ignored(incoming: Path, watch: Watch, arrivals: Any) -> None:
    watch()
    for name in (
        "a.pt.part",
        "b.tmp",
        "c.crdownload",
        ".hidden",
        "d.pt~",
        "notes.py",
        "samples.npz",
        "x.modelium.yaml",
    ):
        (incoming / name).write_bytes(b"x")
    (incoming / "last.pt").write_bytes(b"x")
    arrivals.wait_for(1)
    time.sleep(0.5)
    assert arrivals.names == ["last.pt"]


def test_a_changed_file_is_a_new_arrival_and_an_unchanged_one_is_not(
    incoming: Path, watch: Watch, arrivals: Any
) -> None:
    source = watch()
    (incoming / "a.pt").write_bytes(b"1")
    arrivals.wait_for(1)
    source.scan()
    (incoming / "a.pt").write_bytes(b"22")
    arrivals.wait_for(2)
    source.scan()
    time.sleep(0.4)
    assert [a.size_bytes for a in arrivals.all] == [1, 2]


def test_a_late_sidecar_makes_its_model_a_new_arrival(incoming: Path, watch: Watch, arrivals: Any) -> None:
    watch()
    (incoming / "a.pt").write_bytes(b"1")
    arrivals.wait_for(1)
    (incoming / "a.pt.modelium.yaml").write_text("task: digits\n")
    assert arrivals.wait_for(2) == ["a.pt", "a.pt"]
    assert arrivals.doubled == {}


def test_a_changed_companion_makes_its_model_a_new_arrival(incoming: Path, watch: Watch, arrivals: Any) -> None:
    (incoming / "model.py").write_text("class A: ...\n")
    (incoming / "a.pt.modelium.yaml").write_text("module: {file: model.py, class_name: A}\n")
    watch()
    (incoming / "a.pt").write_bytes(b"1")
    assert arrivals.wait_for(1) == ["a.pt"]
    (incoming / "model.py").write_text("class A: pass  # changed\n")
    assert arrivals.wait_for(2) == ["a.pt", "a.pt"]


def test_a_model_waits_a_while_for_the_companions_of_its_sidecar(incoming: Path, watch: Watch, arrivals: Any) -> None:
    source = watch(folder_quiet_s=5)
    (incoming / "a.pt.modelium.yaml").write_text("samples: s.npz\n")
    (incoming / "a.pt").write_bytes(b"1")
    time.sleep(0.4)
    assert arrivals.names == []
    assert "s.npz" in source.waiting()[incoming / "a.pt"]
    (incoming / "s.npz").write_bytes(b"npz")
    arrivals.wait_for(1)
    assert [a.size_bytes for a in arrivals.all] == [1 + 3 + len("samples: s.npz\n")]


def test_a_model_whose_companion_never_comes_is_reported_all_the_same(
    incoming: Path, watch: Watch, arrivals: Any
) -> None:
    watch(folder_quiet_s=0.3)
    (incoming / "a.pt.modelium.yaml").write_text("samples: s.npz\n")
    (incoming / "a.pt").write_bytes(b"1")
    assert arrivals.wait_for(1) == ["a.pt"]


def test_links_and_pipes_are_reported_so_that_they_can_be_refused(
    incoming: Path, watch: Watch, arrivals: Any, tmp_path: Path
) -> None:
    (incoming / "link.pt").symlink_to(tmp_path / "nowhere")
    watch()
    assert arrivals.wait_for(1) == ["link.pt"]


def test_two_thousand_files_are_reported_once_each(incoming: Path, watch: Watch, arrivals: Any, tmp_path: Path) -> None:
    watch()
    expected = []
    for i in range(1000):
        (incoming / f"m{i:04}.onnx").write_bytes(b"%d" % i)
        expected.append(f"m{i:04}.onnx")
    staged = tmp_path / "staged"
    staged.mkdir()
    for i in range(1000):
        (staged / f"n{i:04}.onnx").write_bytes(b"%d" % i)
        expected.append(f"group/n{i:04}.onnx")
    shutil.move(staged, incoming / "group")
    arrivals.wait_for(2000, timeout_s=30)
    assert arrivals.names == sorted(expected)


def test_what_the_kernel_did_not_tell_is_found_by_the_scan_after_an_overflow(
    incoming: Path, arrivals: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (incoming / "first.pt").write_bytes(b"1")
    source = FolderSource(incoming, arrivals, settle_s=0.1, folder_quiet_s=0.1, rescan_s=60)
    source.start()
    try:
        arrivals.wait_for(1)  # the scan at the start is over
        source._watcher._observer.unschedule_all()  # type: ignore[union-attr]
        (incoming / "lost.pt").write_bytes(b"1")
        time.sleep(0.3)
        assert arrivals.names == ["first.pt"]
        logging.getLogger("watchdog.observers.inotify_c").warning(
            "Inotify queue overflowed; filesystem events were lost"
        )
        assert arrivals.wait_for(2) == ["first.pt", "lost.pt"]
    finally:
        source.stop()


def test_a_periodic_scan_finds_what_no_event_told(incoming: Path, arrivals: Any) -> None:
    source = FolderSource(incoming, arrivals, settle_s=0.1, folder_quiet_s=0.1, rescan_s=0.3)
    source.start()
    try:
        source._watcher._observer.unschedule_all()  # type: ignore[union-attr]
        (incoming / "lost.pt").write_bytes(b"1")
        assert arrivals.wait_for(1) == ["lost.pt"]
    finally:
        source.stop()


def test_a_retryable_refusal_is_tried_again_and_a_final_one_is_not(incoming: Path) -> None:
    calls: list[str] = []
    done = threading.Event()

    def refuse_first(arrival: Arrival) -> None:
        calls.append(arrival.relative)
        if arrival.relative == "bad.pt":
            raise ModelFailed("It is broken.")
        if calls.count("full.pt") == 1:
            raise StorageFull("The disk is full.")
        done.set()

    for name in ("bad.pt", "full.pt"):
        (incoming / name).write_bytes(b"1")
    source = FolderSource(incoming, refuse_first, settle_s=0.05, folder_quiet_s=0.05, rescan_s=0.2)
    source.start()
    try:
        assert done.wait(10)
        time.sleep(0.5)
        assert sorted(calls) == ["bad.pt", "full.pt", "full.pt"]
        assert source.alive
    finally:
        source.stop()
    assert not source.alive


def test_drops_lists_each_model_of_a_plain_folder(incoming: Path) -> None:
    _make_hf_folder(incoming / "minilm")
    (incoming / "team").mkdir()
    for name in ("a.pt", "a.pt.modelium.yaml", "model.py", "s.npz", ".x", "team/b.onnx"):
        (incoming / name).write_bytes(b"x")
    assert [a.relative for a in drops(incoming)] == ["a.pt", "minilm", "team/b.onnx"]


def test_drops_of_one_model_are_that_model(incoming: Path) -> None:
    _make_hf_folder(incoming / "minilm")
    assert [a.relative for a in drops(incoming / "minilm")] == ["minilm"]
    (incoming / "weights.npz").write_bytes(b"x")
    [arrival] = drops(incoming / "weights.npz")
    assert arrival.uri == (incoming / "weights.npz").as_uri()


def test_drops_of_nothing_and_of_a_sidecar_are_refused(incoming: Path) -> None:
    with pytest.raises(NotFound):
        drops(incoming / "nothing")
    (incoming / "a.modelium.yaml").write_text("")
    with pytest.raises(UsageError, match="sidecar"):
        drops(incoming / "a.modelium.yaml")
