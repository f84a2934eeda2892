from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import random
import socket
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from ingestion.artifact_folder import ArtifactFolder
from ingestion.store import Store
from schemas.artifact import ArtifactKind
from schemas.errors import LimitExceeded, ModelFailed, ModeliumError, NeedsInput, NotFound, StillChanging

FolderOf = Callable[..., Path]


def test_a_file_is_stored_under_its_sha256_and_can_be_read_by_anybody(store: Store, tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(b"weights")
    (tmp_path / "m.pt").chmod(0o600)
    artifact = store.put(tmp_path / "m.pt")
    assert artifact.sha256 == hashlib.sha256(b"weights").hexdigest()
    assert (artifact.kind, artifact.size_bytes) == (ArtifactKind.FILE, 7)
    stored = store.path(artifact.sha256)
    assert stored.read_bytes() == b"weights"
    assert oct(stored.stat().st_mode & 0o777) == "0o444"
    assert oct(stored.parent.stat().st_mode & 0o777) == "0o755"


def test_a_folder_is_named_as_sha256sum_would_name_its_files(store: Store, tmp_path: Path, folder_of: FolderOf) -> None:
    folder = folder_of(tmp_path / "m", config=b"{}", sub__weights=b"w")
    artifact = store.put(folder)
    lines = subprocess.run(
        ["sha256sum", "config", "sub/weights"], cwd=folder, capture_output=True, check=True, text=True
    ).stdout
    assert artifact.sha256 == hashlib.sha256(lines.encode()).hexdigest()
    tree = store.path(artifact.sha256)
    assert (tree / "sub" / "weights").read_bytes() == b"w"
    assert oct((tree / "sub").stat().st_mode & 0o777) == "0o755"
    assert store.artifact(artifact.sha256) == artifact


def test_the_same_content_is_stored_once(store: Store, tmp_path: Path, folder_of: FolderOf) -> None:
    (tmp_path / "a").write_bytes(b"same" * 1000)
    folder_of(tmp_path / "m", x=b"same" * 1000, y=b"same" * 1000)
    first, again, folder = store.put(tmp_path / "a"), store.put(tmp_path / "a"), store.put(tmp_path / "m")
    assert first == again
    assert store.size_bytes() == 4000
    assert {a.sha256 for a in store.all()} == {first.sha256, folder.sha256}


def test_what_is_taken_is_not_copied(store: Store, tmp_path: Path, folder_of: FolderOf) -> None:
    made = folder_of(tmp_path / "m", a=b"weights", b=b"weights", sub__c=b"others")
    inodes = {(made / "a").stat().st_ino, (made / "b").stat().st_ino, (made / "sub" / "c").stat().st_ino}
    tree = store.path(store.put(made, take=True).sha256)
    assert {(tree / name).stat().st_ino for name in ("a", "b", "sub/c")} < inodes
    assert {(tree / name).read_bytes() for name in ("a", "b")} == {b"weights"}
    assert oct((tree / "a").stat().st_mode & 0o777) == "0o444"


def test_what_has_another_name_is_copied_though_it_may_be_taken(store: Store, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"weights")
    os.link(tmp_path / "a", tmp_path / "kept by somebody")
    stored = store.path(store.put(tmp_path / "a", take=True).sha256)
    (tmp_path / "kept by somebody").write_bytes(b"changed")
    assert stored.read_bytes() == b"weights"


def test_deleting_frees_only_what_no_other_artifact_holds(store: Store, tmp_path: Path, folder_of: FolderOf) -> None:
    (tmp_path / "a").write_bytes(b"shared")
    folder_of(tmp_path / "m", x=b"shared", y=b"own")
    file, folder = store.put(tmp_path / "a"), store.put(tmp_path / "m")
    assert store.delete(folder.sha256) == 3
    assert store.path(file.sha256).read_bytes() == b"shared"
    folder = store.put(tmp_path / "m")
    assert store.delete(file.sha256) == 0
    assert store.delete(folder.sha256) == 9
    assert store.size_bytes() == 0
    with pytest.raises(NotFound):
        store.path(file.sha256)


@pytest.mark.parametrize("name", ["", "xyz", "../../etc/passwd", "A" * 64])
def test_what_is_no_sha256_is_no_artifact(store: Store, name: str) -> None:
    with pytest.raises(NotFound):
        store.path(name)


def test_a_large_file_costs_no_memory(store: Store, tmp_path: Path) -> None:
    with (tmp_path / "big").open("wb") as file:
        file.truncate(300 << 20)
    tracemalloc.start()
    try:
        store.put(tmp_path / "big")
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("failure", [None, errno.EXDEV, errno.ENOSYS])
@pytest.mark.parametrize("size_bytes", [0, 1, 100_000, (16 << 20) + 1])
@pytest.mark.parametrize("take", [True, False])
def test_files_of_any_size_are_stored_whole_wherever_they_come_from(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, take: bool, size_bytes: int, failure: int | None
) -> None:
    def refuse(*args: object) -> int:
        raise OSError(failure, "no")

    if failure is not None:  # another file system, or one whose driver can't
        monkeypatch.setattr(os, "copy_file_range", refuse)
    content = random.Random(size_bytes).randbytes(size_bytes)
    (tmp_path / "m").write_bytes(content)
    artifact = store.put(tmp_path / "m", take=take)
    assert artifact.sha256 == hashlib.sha256(content).hexdigest() and artifact.size_bytes == size_bytes
    assert store.path(artifact.sha256).read_bytes() == content


def test_what_is_stored_and_very_large_is_not_written_to_the_disk_again(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_size))
    with (tmp_path / "big").open("wb") as file:
        file.truncate(257 << 20)
    store.put(tmp_path / "big")
    assert 257 << 20 in synced
    synced.clear()
    store.put(tmp_path / "big")
    assert 257 << 20 not in synced


@pytest.mark.parametrize("size_bytes", [5000, (16 << 20) + 5000])
def test_a_copy_that_breaks_off_is_continued_by_hand(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size_bytes: int
) -> None:
    copied, real = [], os.copy_file_range

    def once(source: int, copy: int, count: int) -> int:
        if copied:
            raise OSError(errno.EIO, "no more")
        copied.append(real(source, copy, 1000))
        return copied[0]

    monkeypatch.setattr(os, "copy_file_range", once)
    content = random.Random(7).randbytes(size_bytes)
    (tmp_path / "m").write_bytes(content)
    assert store.path(store.put(tmp_path / "m").sha256).read_bytes() == content and copied == [1000]


def test_links_are_refused(store: Store, tmp_path: Path, folder_of: FolderOf) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"s")
    folder = folder_of(tmp_path / "m", config=b"{}")
    (folder / "weights").symlink_to(secret)
    with pytest.raises(ModelFailed, match=r"is a link to .*cp -rL"):
        store.put(folder)
    (tmp_path / "link").symlink_to(secret)
    with pytest.raises(ModelFailed, match=r"is a link to .*cp -rL"):
        store.put(tmp_path / "link")
    assert list(store.all()) == []


def test_a_link_on_the_way_is_refused(store: Store, tmp_path: Path, folder_of: FolderOf) -> None:
    folder_of(tmp_path / "outside", model=b"x")
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    (incoming / "team").symlink_to(tmp_path / "outside")
    with pytest.raises(ModelFailed, match="link"):
        store.put(incoming / "team" / "model", below=incoming)


def _hf_cache(folder_of: FolderOf, root: Path) -> Path:
    blob = "a" * 64
    snapshot = root / "models--acme--tiny-bert" / "snapshots" / "0f1e"
    snapshot.mkdir(parents=True)
    folder_of(root / "models--acme--tiny-bert" / "blobs", **{blob: b"weights"})
    (snapshot / "model.safetensors").symlink_to(f"../../blobs/{blob}")
    return snapshot


def test_a_hugging_face_snapshot_is_refused_with_a_command_that_works(
    store: Store, tmp_path: Path, folder_of: FolderOf
) -> None:
    snapshot = _hf_cache(folder_of, tmp_path / "hub")
    with pytest.raises(NeedsInput) as refused:
        store.put(snapshot)
    command = refused.value.hint.split(": ", 1)[1]
    assert command == f"cp -rL {snapshot} tiny-bert"
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    assert store.put(tmp_path / "tiny-bert").size_bytes == 7


def test_a_link_to_a_snapshot_in_the_watched_folder_is_mended_by_its_command(
    store: Store, tmp_path: Path, folder_of: FolderOf
) -> None:
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    (incoming / "bert").symlink_to(_hf_cache(folder_of, tmp_path / "hub"))
    with pytest.raises(NeedsInput) as refused:
        store.put(incoming / "bert", below=incoming)
    subprocess.run(refused.value.hint.split(": ", 1)[1], shell=True, check=True)
    assert store.put(incoming / "bert", below=incoming).size_bytes == 7


def test_special_files_are_refused_and_never_block(store: Store, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelFailed, match="named pipe"):
        store.put(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "sock"))
        with pytest.raises(ModelFailed, match="socket"):
            store.put(tmp_path / "sock")
    with pytest.raises(ModelFailed, match="device"):
        store.put(Path("/dev/null"))


@pytest.mark.parametrize("name", [b"bad\xff", b"line\nbreak", b"tab\t", "turned\u202e".encode(), b"d/" * 40 + b"x"])
def test_strange_names_are_refused_with_a_printable_sentence(store: Store, tmp_path: Path, name: bytes) -> None:
    place = tmp_path / "m" / os.fsdecode(name)
    place.parent.mkdir(parents=True)
    place.write_bytes(b"x")
    with pytest.raises(ModelFailed, match="The name") as refused:
        store.put(tmp_path / "m")
    assert str(refused.value).encode().isascii() and refused.value.args[0].isprintable()


def test_too_many_files_are_refused(tmp_path: Path, folder_of: FolderOf) -> None:
    store = Store(tmp_path / "store", max_files=3)
    folder = folder_of(tmp_path / "m", a=b"1", b__c=b"2", b__d=b"3", e=b"4")
    with pytest.raises(LimitExceeded):
        store.put(folder)


def test_a_file_that_changes_while_it_is_read_is_retryable(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "growing"
    path.write_bytes(b"x" * 100)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            with path.open("ab") as file:
                file.write(b"y" * 1000)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with pytest.raises(StillChanging) as refused:
            for _ in range(200):
                store.put(path)
        assert refused.value.retryable
    finally:
        stop.set()
        writer.join()


def test_a_file_swapped_for_a_link_between_look_and_open_is_refused(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder_of: FolderOf
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    folder = folder_of(tmp_path / "m", weights=b"w")
    real = os.stat

    def swap(path: object, **how: object) -> os.stat_result:
        result = real(path, **how)  # type: ignore[call-overload]
        if path == "weights":
            (folder / "weights").unlink()
            (folder / "weights").symlink_to(secret)
        return result  # type: ignore[no-any-return]

    monkeypatch.setattr("ingestion.opening.os.stat", swap)
    with pytest.raises(ModelFailed, match="was replaced by a link"):
        store.put(folder)
    assert list(store.all()) == []


def test_an_absent_or_empty_folder_is_told_as_such(store: Store, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        store.put(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelFailed, match="no files"):
        store.put(tmp_path / "empty")


def test_a_text_that_spells_a_manifest_does_not_displace_its_folder(
    store: Store, tmp_path: Path, folder_of: FolderOf
) -> None:
    folder = folder_of(tmp_path / "m", config=b"{}")
    text = tmp_path / "text"
    text.write_text(f"{hashlib.sha256(b'{}').hexdigest()}  config\n")
    as_text = store.put(text)
    artifact = store.put(folder)
    assert artifact.sha256 == as_text.sha256
    assert store.put(text) == artifact
    assert store.path(artifact.sha256).is_dir()


def test_what_a_killed_put_left_behind_is_swept(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    code = (
        "import os, sys; from pathlib import Path; from ingestion.artifact_folder import ArtifactFolder\n"
        "with ArtifactFolder(Path(sys.argv[1])).scratch() as scratch:\n"
        "    (scratch / 'partial').write_bytes(b'x'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-P", "-c", code, str(store.root)], check=False)
    [left] = (store.root / "incoming-tmp").iterdir()
    Store(tmp_path / "store")
    assert left.exists(), "too fresh to judge"
    os.utime(left, (0, 0))
    with ArtifactFolder(store.root).scratch() as living:
        os.utime(living, (0, 0))
        Store(tmp_path / "store")
        assert living.exists() and not left.exists()


def test_sweep_frees_what_no_artifact_holds(store: Store, tmp_path: Path, folder_of: FolderOf) -> None:
    kept = store.put(folder_of(tmp_path / "kept", a=b"kept"))
    lost = store.put(folder_of(tmp_path / "lost", a=b"lost!"))
    (store.root / "manifests" / f"{lost.sha256}.json").unlink()
    assert store.sweep() == 5
    assert [a.sha256 for a in store.all()] == [kept.sha256]
    assert store.put(tmp_path / "lost") == lost


def _put_and_delete(root: Path, folder: Path, rounds: int) -> None:
    store = Store(root)
    for _ in range(rounds):
        sha256 = store.put(folder).sha256
        try:
            store.delete(sha256)
        except NotFound:
            continue


def test_processes_that_put_and_delete_the_same_content_do_not_disturb_each_other(
    tmp_path: Path, folder_of: FolderOf
) -> None:
    folder = folder_of(tmp_path / "m", a=b"1", b__c=b"2", d=b"1")
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_put_and_delete, args=(tmp_path / "s", folder, 30)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    store = Store(tmp_path / "s")
    sha256 = store.put(folder).sha256
    assert {p.name: p.read_bytes() for p in store.path(sha256).rglob("*") if p.is_file()} == {
        "a": b"1", "c": b"2", "d": b"1"
    }  # fmt: skip


def test_put_files_makes_one_folder_of_files_and_bytes(store: Store, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_bytes(b"class A: ...")
    artifact = store.put_files({"modelium.yaml": b"task: x", "code/model.py": tmp_path / "model.py"})
    assert [file.path for file in artifact.files] == ["code/model.py", "modelium.yaml"]
    with pytest.raises(ModeliumError):
        store.put_files({"x": tmp_path / "absent"})
