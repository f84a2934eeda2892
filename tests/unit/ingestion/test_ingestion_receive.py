from __future__ import annotations

import os
from pathlib import Path

import pytest

from ingestion import event_of, receive
from ingestion.folder import drops
from ingestion.room import FLOOR_BYTES, check_room
from ingestion.store import Store
from schemas.artifact import ArtifactKind
from schemas.errors import StorageFull


def _model(folder: Path, sidecar: str | None = None) -> Path:
    model = folder / "Team A" / "net.pth"
    model.parent.mkdir(parents=True, exist_ok=True)
    model.write_bytes(b"weights")
    if sidecar is not None:
        model.with_name("net.pth.modelium.yaml").write_text(sidecar)
    return model


def test_a_model_without_a_sidecar_is_received(incoming: Path, store: Store) -> None:
    _model(incoming)
    [arrival] = drops(incoming)
    received = receive(arrival, store)
    assert (received.name, received.error, received.sidecar_artifact) == ("team-a-net", None, None)
    assert received.event.uri.endswith("/incoming/Team%20A/net.pth")
    assert store.path(received.artifact.sha256).read_bytes() == b"weights"


def test_sidecar_and_companions_are_stored_as_one_folder(incoming: Path, store: Store) -> None:
    model = _model(incoming, "name: my-net\nmodule: {file: net.py, class_name: Net}\n")
    model.with_name("net.py").write_text("class Net: ...\n")
    [arrival] = drops(incoming)
    received = receive(arrival, store)
    assert received.name == "my-net"
    assert received.sidecar_artifact is not None
    code = store.path(received.sidecar_artifact.sha256)
    assert sorted(p.name for p in code.iterdir()) == ["modelium.yaml", "net.py"]


def test_a_faulty_sidecar_does_not_lose_the_model(incoming: Path, store: Store) -> None:
    _model(incoming, "name: Not A Label\n")
    [arrival] = drops(incoming)
    received = receive(arrival, store)
    assert received.error is not None and received.error.facts["pointer"] == "/name"
    assert received.sidecar is None and received.sidecar_artifact is not None
    assert store.has(received.artifact.sha256)


def test_a_missing_companion_is_an_error_that_keeps_the_sidecar(incoming: Path, store: Store) -> None:
    _model(incoming, "name: my-net\nsamples: s.npz\n")
    [arrival] = drops(incoming)
    received = receive(arrival, store)
    assert received.error is not None and received.error.code == "needs_input"
    assert received.name == "my-net"
    (incoming / "Team A" / "s.npz").write_bytes(b"npz")
    [again] = drops(incoming)
    mended = receive(again, store)
    assert mended.error is None
    assert mended.sidecar_artifact != received.sidecar_artifact
    assert mended.event.idempotency_key != received.event.idempotency_key


def test_a_link_is_received_as_a_refusal_with_a_sentence(incoming: Path, store: Store) -> None:
    (incoming / "link.pt").symlink_to("/etc/passwd")
    [arrival] = drops(incoming)
    received = receive(arrival, store)
    assert received.error is not None and received.error.code == "model_failed"
    assert "link" in received.error.message and "cp -rL" in received.error.hint
    [refused] = store.path(received.artifact.sha256).iterdir()
    assert "root" not in refused.read_text().replace(str(incoming), "")


def test_a_name_that_is_not_utf8_is_received_as_a_refusal(incoming: Path, store: Store) -> None:
    Path(os.fsdecode(os.fsencode(incoming) + b"/bad\xff.pt")).write_bytes(b"x")
    [arrival] = drops(incoming)
    received = receive(arrival, store)
    assert received.event.uri.endswith("bad%FF.pt")
    received.event.model_dump_json()


def test_a_folder_is_stored_without_its_sidecar_and_hidden_files(incoming: Path, store: Store) -> None:
    (incoming / "bert" / ".git").mkdir(parents=True)
    for name in ("config.json", "modelium.yaml", ".gitattributes", ".git/HEAD", "model.bin.part"):
        (incoming / "bert" / name).write_text("")
    [arrival] = drops(incoming)
    received = receive(arrival, store)
    assert received.artifact.kind is ArtifactKind.FOLDER
    assert [file.path for file in received.artifact.files] == ["config.json"]
    assert received.sidecar is not None and received.name == "bert"


def test_the_same_arrival_has_the_same_idempotency_key(incoming: Path) -> None:
    model = _model(incoming)
    first, again = (event_of(drops(incoming)[0]) for _ in range(2))
    assert first.idempotency_key == again.idempotency_key and first.id != again.id
    os.utime(model, (1, 1))
    assert event_of(drops(incoming)[0]).idempotency_key != first.idempotency_key


def test_room_is_refused_with_the_numbers(tmp_path: Path) -> None:
    space = os.statvfs(tmp_path)
    free = space.f_bavail * space.f_frsize
    check_room(1000, tmp_path, tmp_path, tmp_path)
    with pytest.raises(StorageFull, match=r"has .* free") as refused:
        check_room(free // 2, tmp_path)
    assert refused.value.facts["needed_bytes"] == int(free // 2 * 7.5) + FLOOR_BYTES
