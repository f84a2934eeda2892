"""Stores of several machines in front of one bucket of a real S3 server."""

from __future__ import annotations

import hashlib
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from hypothesis.strategies import sampled_from

from ingestion.bucket import Bucket
from ingestion.shared_artifacts import SharedArtifacts
from ingestion.store import Store
from schemas.artifact import Artifact, ArtifactFile, ArtifactKind, manifest_sha256
from schemas.errors import CorruptObject, NotFound, StoreUnavailable

pytestmark = pytest.mark.s3
Machine = Callable[..., Store]
FolderOf = Callable[..., Path]


def file_of(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def blob_key(content: bytes) -> str:
    sha256 = hashlib.sha256(content).hexdigest()
    return f"blobs/{sha256[:2]}/{sha256}"


def files_here(store: Store) -> list[Path]:
    return [p for p in store.root.rglob("*") if p.is_file() and p.parent.name != "fetching" and p.name != "lock"]


def test_what_one_machine_puts_comes_out_of_another_that_has_nothing(
    machine: Machine, tmp_path: Path, folder_of: FolderOf
) -> None:
    here, there = machine("here"), machine("there")
    file = here.put(file_of(tmp_path / "m.pt", b"weights"))
    folder = here.put(folder_of(tmp_path / "m", config=b"{}", sub__weights=b"weights", empty=b""))
    assert [there.artifact(a.sha256) for a in (file, folder)] == [file, folder]
    assert there.has(file.sha256) and files_here(there) == []
    stored, tree = there.path(file.sha256), there.path(folder.sha256)
    assert stored.is_relative_to(there.root) and stored.read_bytes() == b"weights"
    assert oct(stored.stat().st_mode & 0o777) == "0o444" and oct((tree / "sub").stat().st_mode & 0o777) == "0o755"
    content = {str(p.relative_to(tree)): p.read_bytes() for p in tree.rglob("*") if p.is_file()}
    assert content == {"config": b"{}", "sub/weights": b"weights", "empty": b""}
    assert (tree / "sub" / "weights").stat().st_ino == stored.stat().st_ino, "the bytes are here once"
    assert {a.sha256 for a in machine("third").all()} == {file.sha256, folder.sha256}


def test_what_is_in_the_bucket_is_not_uploaded_again(machine: Machine, cloud: Any, tmp_path: Path) -> None:
    machine("here").put(file_of(tmp_path / "m.pt", b"weights"))
    before = cloud.client.list_objects_v2(Bucket=cloud.bucket)["Contents"]
    machine("there").put(tmp_path / "m.pt")
    assert cloud.client.list_objects_v2(Bucket=cloud.bucket)["Contents"] == before


def test_a_deleted_artifact_is_gone_for_all_and_its_bytes_with_the_next_sweep(
    machine: Machine, cloud: Any, tmp_path: Path, folder_of: FolderOf
) -> None:
    here, there = machine("here"), machine("there", grace_s=0.0)
    file = here.put(file_of(tmp_path / "m.pt", b"shared"))
    folder = here.put(folder_of(tmp_path / "m", x=b"shared", y=b"own"))
    there.delete(folder.sha256)
    assert not there.has(folder.sha256)
    with pytest.raises(NotFound):
        there.path(folder.sha256)
    with pytest.raises(NotFound):
        there.delete(folder.sha256)
    assert there.shared is not None and there.shared.sweep() == 3
    assert cloud.objects("blobs") == [blob_key(b"shared")]
    assert there.path(file.sha256).read_bytes() == b"shared"
    assert here.put(tmp_path / "m") == folder and machine("third").path(folder.sha256).is_dir()


def test_a_sweep_keeps_what_was_written_lately(machine: Machine, cloud: Any, tmp_path: Path) -> None:
    store = machine("here")
    sha256 = store.put(file_of(tmp_path / "m.pt", b"weights")).sha256
    assert store.shared is not None and not store.shared.is_collectable(sha256)
    store.delete(sha256)
    assert store.shared.sweep() == 0 and cloud.objects("blobs") == [blob_key(b"weights")]


def test_what_is_about_to_be_relied_on_is_young_again_before_a_collector_may_take_it(
    machine: Machine, cloud: Any, tmp_path: Path, folder_of: FolderOf
) -> None:
    here, there = machine("here", grace_s=3.0), machine("there", grace_s=3.0)
    reused = here.put(file_of(tmp_path / "reused", b"reused")).sha256
    deleted = here.put(file_of(tmp_path / "x", b"shared")).sha256
    here.delete(deleted)
    time.sleep(2)
    there.put(folder_of(tmp_path / "m", x=b"shared", y=b"own"))
    assert there.renew(reused) and not there.renew(deleted)
    time.sleep(1.5)
    assert here.shared is not None and not here.shared.is_collectable(reused)
    [unheld] = [m for m in cloud.objects("manifests") if reused not in m]
    cloud.remove(unheld)  # as if the machine were still uploading: the bytes are there, their artifact is not yet
    assert here.shared.sweep() == 0


@pytest.mark.parametrize("tampered", [b"wEights", b"weights and more", b""])
def test_other_bytes_than_the_name_says_are_refused_and_never_land(
    machine: Machine, cloud: Any, tmp_path: Path, tampered: bytes, folder_of: FolderOf
) -> None:
    sha256 = machine("here").put(folder_of(tmp_path / "m", config=b"{}", weights=b"weights")).sha256
    cloud.write(blob_key(b"weights"), tampered)
    there = machine("there")
    with pytest.raises(CorruptObject, match="does not hold the bytes it is named after") as refused:
        there.path(sha256)
    assert blob_key(b"weights") in str(refused.value) and "retry" in refused.value.hint
    assert files_here(there) == []


def test_a_machine_that_has_the_bytes_mends_what_was_removed_as_told(
    machine: Machine, cloud: Any, tmp_path: Path
) -> None:
    here = machine("here")
    sha256 = here.put(file_of(tmp_path / "m.pt", b"weights")).sha256
    for key in cloud.objects():
        cloud.remove(key)
    assert not machine("there").has(sha256) and here.renew(sha256)
    assert machine("there").path(sha256).read_bytes() == b"weights"


def lies() -> dict[str, tuple[str, bytes]]:
    """Manifests by what is wrong with them: the name asked for, and what stands under it."""
    other = Artifact(sha256="b" * 64, kind=ArtifactKind.FILE, size_bytes=1)
    sha256 = hashlib.sha256(b"weights").hexdigest()
    out = (ArtifactFile(path="../../../blobs/out", sha256=sha256, size_bytes=7),)
    absolute = (ArtifactFile(path="/tmp/out", sha256=sha256, size_bytes=7),)
    no_name = (ArtifactFile(path="a", sha256="../../../secret", size_bytes=7),)
    made = {
        name: Artifact(sha256=manifest_sha256(files), kind=ArtifactKind.FOLDER, size_bytes=7, files=files)
        for name, files in (("leads out", out), ("absolute", absolute), ("no name", no_name))
    }
    renamed = made["leads out"].model_copy(update={"sha256": "c" * 64})
    return {
        "not JSON": ("a" * 64, b"<html>"),
        "another's": ("a" * 64, other.model_dump_json().encode()),
        "renamed": ("c" * 64, renamed.model_dump_json().encode()),
        **{name: (artifact.sha256, artifact.model_dump_json().encode()) for name, artifact in made.items()},
    }


@pytest.mark.parametrize("lie", lies())
def test_a_manifest_that_is_not_what_its_name_says_is_refused(machine: Machine, cloud: Any, lie: str) -> None:
    sha256, content = lies()[lie]
    cloud.write(f"manifests/{sha256}.json", content)
    cloud.write(blob_key(b"weights"), b"weights")
    store = machine("here")
    with pytest.raises(CorruptObject, match="is not the manifest it is named after"):
        store.path(sha256)
    assert files_here(store) == []


def test_an_upload_that_is_killed_half_way_is_no_artifact(
    machine: Machine, cloud: Any, tmp_path: Path, folder_of: FolderOf
) -> None:
    folder = folder_of(tmp_path / "m", config=b"{}")
    with (folder / "big").open("wb") as big:
        big.truncate(120 << 20)
    code = (
        "import sys; from pathlib import Path; from ingestion.bucket import Bucket; from ingestion.store import Store\n"
        "from ingestion.shared_artifacts import SharedArtifacts\n"
        "shared = SharedArtifacts(Bucket(sys.argv[1], endpoint_url=sys.argv[2]))\n"
        "Store(Path(sys.argv[3]), shared=shared).put(Path(sys.argv[4]))"
    )
    argv = [sys.executable, "-P", "-c", code, cloud.url, cloud.endpoint_url, str(tmp_path / "here"), str(folder)]
    with subprocess.Popen(argv) as putting:
        while not (uploads := cloud.client.list_multipart_uploads(Bucket=cloud.bucket).get("Uploads")):
            assert putting.poll() is None, "it was over before it could be killed"
        putting.send_signal(signal.SIGKILL)
    assert cloud.objects("manifests") == [] and len(uploads) == 1
    here, there = machine("here"), machine("there", grace_s=0.0)
    assert list(there.all()) == [] == list(here.all())
    assert there.shared is not None
    there.shared.sweep()
    assert cloud.objects() == [] and "Uploads" not in cloud.client.list_multipart_uploads(Bucket=cloud.bucket)
    sha256 = here.put(folder).sha256
    assert (there.path(sha256) / "big").stat().st_size == 120 << 20


def test_large_files_cost_no_memory_on_the_way_out_and_in(machine: Machine, tmp_path: Path) -> None:
    with (tmp_path / "big").open("wb") as file:
        file.truncate(150 << 20)
    here, there = machine("here"), machine("there")
    here.put(file_of(tmp_path / "small", b"x"))  # the libraries are loaded
    tracemalloc.start()
    try:
        there.path(here.put(tmp_path / "big").sha256)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_every_refusal_is_one_sentence_that_says_what_to_do_and_no_secret(
    cloud: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop = file_of(tmp_path / "m.pt", b"weights")

    def refusal(url: str = cloud.url, endpoint_url: str = cloud.endpoint_url) -> StoreUnavailable:
        root = tmp_path / "refused"
        with pytest.raises(StoreUnavailable) as caught:
            Store(root, shared=SharedArtifacts(Bucket(url, endpoint_url=endpoint_url))).put(drop)
        assert list(Store(root).all()) == [] and drop.exists() and caught.value.retryable
        assert "sesame" not in str(caught.value) and caught.value.hint
        return caught.value

    assert str(refusal("s3://no-such-bucket/x")).startswith("There is no bucket s3://no-such-bucket/x at")
    assert "does not answer" in str(refusal(endpoint_url="http://127.0.0.1:9"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "open-sesame")
    assert "refuses the credentials (SignatureDoesNotMatch)" in str(refusal())
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    assert "AWS_ACCESS_KEY_ID" in refusal().hint
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "AWS_SECRET_ACCESS_KEY" in refusal().hint
    monkeypatch.setenv("AWS_PROFILE", "nowhere")
    assert "AWS_PROFILE" in refusal().hint


def test_without_the_library_the_error_says_how_to_install_it() -> None:
    code = (
        "import sys; sys.modules['boto3'] = None\n"
        "from importlib import util; util.find_spec = lambda name: None\n"
        "import ingestion.bucket as bucket; bucket.find_spec = util.find_spec\n"
        "bucket.Bucket('s3://a/b')"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'modelium[s3]'" in done.stderr


def test_what_is_evicted_here_is_fetched_again(machine: Machine, tmp_path: Path, folder_of: FolderOf) -> None:
    store = machine("here")
    sha256 = store.put(folder_of(tmp_path / "m", a=b"123")).sha256
    assert store.evict(sha256) == 3 and store.size_bytes() == 0 and store.has(sha256)
    assert (store.path(sha256) / "a").read_bytes() == b"123"


def test_what_the_bucket_lacks_is_not_evicted(machine: Machine, tmp_path: Path) -> None:
    store = machine("here")
    sha256 = Store(store.root).put(file_of(tmp_path / "m.pt", b"weights")).sha256
    assert store.evict(sha256) == 0 and store.path(sha256).exists()


def test_a_text_that_spells_a_manifest_does_not_displace_its_folder_on_another_machine(
    machine: Machine, tmp_path: Path, folder_of: FolderOf
) -> None:
    text = file_of(tmp_path / "text", f"{hashlib.sha256(b'{}').hexdigest()}  config\n".encode())
    folder = folder_of(tmp_path / "m", config=b"{}")
    assert machine("first").put(text).sha256 == machine("second").put(folder).sha256
    third = machine("third")
    artifact = third.put(text)
    assert artifact.kind is ArtifactKind.FOLDER and third.path(artifact.sha256).is_dir()


CONTENTS: dict[str, dict[str, bytes]] = {
    "a": {"": b"shared"},
    "b": {"x": b"shared", "y": b"own"},
    "c": {"y": b"own", "d/z": b""},
}  # fmt: skip


def test_two_machines_agree_with_a_model_whatever_they_do(machine: Machine, cloud: Any, tmp_path: Path) -> None:
    """``bucket`` and ``here`` say what should be where; every rule does the same to them and to the real stores."""
    sources = {name: tmp_path / f"source-{name}" for name in CONTENTS}
    for name, files in CONTENTS.items():
        for path, content in files.items():
            place = sources[name] / path if path else sources[name]
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
    names = {name: Store(tmp_path / "names").put(source).sha256 for name, source in sources.items()}

    class Machines(RuleBasedStateMachine):
        @initialize()
        def begin(self) -> None:
            for key in cloud.objects():
                cloud.remove(key)
            for which in "12":
                shutil.rmtree(tmp_path / which, ignore_errors=True)
            self.stores = {which: machine(which, grace_s=0.0) for which in "12"}
            self.bucket: set[str] = set()
            self.here: dict[str, set[str]] = {"1": set(), "2": set()}

        @rule(which=sampled_from("12"), name=sampled_from("abc"))
        def put(self, which: str, name: str) -> None:
            assert self.stores[which].put(sources[name]).sha256 == names[name]
            self.bucket.add(name)
            self.here[which].add(name)

        @rule(which=sampled_from("12"), name=sampled_from("abc"))
        def delete(self, which: str, name: str) -> None:
            if name in self.bucket | self.here[which]:
                self.stores[which].delete(names[name])
            else:
                with pytest.raises(NotFound):
                    self.stores[which].delete(names[name])
            self.bucket.discard(name)
            self.here[which].discard(name)

        @rule(which=sampled_from("12"), name=sampled_from("abc"))
        def fetch(self, which: str, name: str) -> None:
            if name not in self.bucket | self.here[which]:
                with pytest.raises(NotFound):
                    self.stores[which].path(names[name])
                return
            path = self.stores[which].path(names[name])
            assert {p: (path / p if p else path).read_bytes() for p in CONTENTS[name]} == CONTENTS[name]
            self.here[which].add(name)

        @rule(which=sampled_from("12"), name=sampled_from("abc"))
        def evict(self, which: str, name: str) -> None:
            self.stores[which].evict(names[name])
            if name in self.bucket:
                self.here[which].discard(name)

        @rule(which=sampled_from("12"), name=sampled_from("abc"))
        def renew(self, which: str, name: str) -> None:
            assert self.stores[which].renew(names[name]) == (name in self.bucket | self.here[which])
            self.bucket |= {name} & self.here[which]

        @rule(which=sampled_from("12"))
        def sweep(self, which: str) -> None:
            shared = self.stores[which].shared
            assert shared is not None
            shared.sweep()
            held = {content for name in self.bucket for content in CONTENTS[name].values()}
            assert sorted(cloud.objects("blobs")) == sorted(map(blob_key, held))

        @invariant()
        def what_is_there_is_there(self) -> None:
            for which, store in self.stores.items():
                assert {n for n in names if store.has(names[n])} == self.bucket | self.here[which]
                files = {content for name in self.here[which] for content in CONTENTS[name].values()}
                assert store.size_bytes() == sum(map(len, files))

    quick = settings(
        max_examples=6, stateful_step_count=12, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    run_state_machine_as_test(Machines, settings=quick)
