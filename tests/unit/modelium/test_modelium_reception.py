"""Drops that are handed in to a ``modelium up``: taken, followed, and left to the caller where they must be."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modelium import follow, jobs
from modelium.context import Context
from modelium.hand_in import PROTOCOL, HandedIn, hand_in, settings_stamp
from modelium.reception import Reception

STAMP = settings_stamp(os.environ)


@pytest.fixture
def up(context: Context) -> Iterator[Context]:
    """A home that counts as up and takes drops; nothing works on their jobs."""
    with context.home.up_lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with Reception(context, STAMP):
            yield context


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "drop" / "net.onnx"
    path.parent.mkdir()
    path.write_bytes(b"no model, and nobody looks")
    return path


def handed(context: Context, path: Path, target: dict[str, Any] | None = None) -> HandedIn:
    given = hand_in(str(context.home.root), path, target)
    assert given is not None
    return given


def ends(context: Context, given: HandedIn, shown: list[dict[str, Any]] | None = None) -> Any:
    """What is told at the end, of jobs that are cancelled as soon as they are recorded."""

    def cancel() -> None:
        deadline = time.monotonic() + 20
        while not follow.look(context) and time.monotonic() < deadline:
            time.sleep(0.01)
        follow.cancel(context, [update.job_id for update in follow.look(context)])

    thread = threading.Thread(target=cancel)
    thread.start()
    told = given.to_the_end((shown if shown is not None else []).append)
    thread.join()
    return told


def test_a_drop_that_is_handed_in_is_followed_to_its_end_and_told_whole(up: Context, model: Path) -> None:
    shown: list[dict[str, Any]] = []
    given = handed(up, model, {"precisions": ["fp32", "int8"]})
    told = ends(up, given, shown)
    [account] = told["accounts"]
    assert given.job_ids == [account["job_id"]]
    assert account["state"] == shown[-1]["state"] == "cancelled"
    assert (told["status"], told["one"]) == (130, True)
    [job] = jobs.everything(up.database)
    assert [precision.value for precision in job.target.precisions] == ["fp32", "int8"]
    assert job.target.model_fields_set == {"precisions"}  # what nobody named is not taken for named


def test_a_folder_of_models_is_told_of_as_several_even_when_it_holds_one(up: Context, model: Path) -> None:
    told = ends(up, handed(up, model.parent))
    assert (len(told["accounts"]), told["one"]) == (1, False)


def test_a_folder_without_a_model_gives_no_job(up: Context, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    told = handed(up, tmp_path / "empty").to_the_end(lambda update: None)
    assert told is not None
    assert told["accounts"] == []


def test_what_is_refused_is_refused_in_the_same_words(up: Context, model: Path) -> None:
    sidecar = model.with_name("net.onnx.modelium.yaml")
    sidecar.write_text("name: net\n")
    told = handed(up, sidecar).to_the_end(lambda update: None)
    assert told is not None
    assert told["error"]["code"] == "usage"
    assert "is a sidecar, not a model" in told["error"]["message"]


@pytest.mark.parametrize("variable", ["MODELIUM_WORKERS", "modelium_workers"])
def test_under_other_settings_the_drop_is_left_to_its_owner(
    up: Context, model: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "7")
    given = handed(up, model)
    assert given.to_the_end(lambda update: None) is None
    assert given.job_ids is None
    assert not follow.look(up)


def test_where_the_home_stands_is_no_other_setting() -> None:
    assert settings_stamp({"MODELIUM_HOME": "/a", "PATH": "/bin"}) == settings_stamp({})
    assert settings_stamp({"MODELIUM_HOME": "/a", "MODELIUM_THREADS": "1"}) != settings_stamp({})


@pytest.mark.parametrize(
    "change",
    [{"file": [0, 0]}, {"path": "/nothing/here.onnx"}, {"protocol": 99}],
    ids=["another file there", "no file there", "another version"],
)
def test_who_sees_another_file_or_speaks_otherwise_is_declined(
    up: Context, model: Path, change: dict[str, object]
) -> None:
    file = [model.lstat().st_dev, model.lstat().st_ino]
    request = {"protocol": PROTOCOL, "settings": STAMP, "path": str(model), "file": file, "target": None}
    with socket.socket(socket.AF_UNIX) as channel:
        channel.settimeout(20)
        channel.connect(str(up.home.reception))
        channel.sendall(json.dumps({**request, **change}).encode() + b"\n")
        assert list(json.loads(channel.makefile().readline())) == ["declined"]
    assert not follow.look(up)


def test_an_interrupt_cancels_what_was_handed_in_and_waits_for_its_end(up: Context, model: Path) -> None:
    given = handed(up, model)

    def interrupted(update: dict[str, Any]) -> None:
        if update["state"] == "received":
            raise KeyboardInterrupt

    told = given.to_the_end(interrupted)
    assert told is not None
    assert told["accounts"][0]["state"] == "cancelled"


def test_who_goes_away_leaves_jobs_that_go_on(up: Context, model: Path) -> None:
    given = handed(up, model)
    deadline = time.monotonic() + 20
    while not follow.look(up) and time.monotonic() < deadline:
        time.sleep(0.01)
    given.close()
    time.sleep(0.3)
    assert [update.state.value for update in follow.look(up)] == ["received"]


def test_jobs_are_known_when_the_reception_ends_before_they_do(context: Context, model: Path) -> None:
    with context.home.up_lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with Reception(context, STAMP):
            given = handed(context, model)
            heard = threading.Event()
            told: list[object] = []
            thread = threading.Thread(
                daemon=True, target=lambda: told.append(given.to_the_end(lambda update: heard.set()))
            )
            thread.start()
            assert heard.wait(20)
    thread.join(20)
    assert told == [None]
    assert given.job_ids == [update.job_id for update in follow.look(context)]


def test_without_an_up_nothing_is_handed_in(context: Context, model: Path) -> None:
    assert hand_in(str(context.home.root), model) is None
    with socket.socket(socket.AF_UNIX) as left_behind:  # nobody listens at what a killed one left
        left_behind.bind(str(context.home.reception))
    assert hand_in(str(context.home.root), model) is None


def test_a_reception_that_breaks_leaves_the_drop_to_its_owner(
    up: Context, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: object) -> Callable[..., object]:
        raise RuntimeError("ours")

    monkeypatch.setattr("modelium.reception.submit_path", breaks)
    assert handed(up, model).to_the_end(lambda update: None) is None


def test_handing_in_imports_nothing_that_takes_long() -> None:
    code = (
        "import sys, modelium.cli.convert, modelium.hand_in; print({'pydantic', 'sqlalchemy', 'rich'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
