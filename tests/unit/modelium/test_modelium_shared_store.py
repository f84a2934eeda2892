"""Several machines on one database and one bucket: collecting, waiting, telling what is wrong."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ingestion.bucket import Bucket
from ingestion.drops import drops
from ingestion.folder import FolderSource
from ingestion.shared_artifacts import SharedArtifacts
from ingestion.store import Store
from modelium import db, doctor, jobs, logs, machine_lease, settings, step_runs
from modelium.context import Context
from modelium.garbage import collect
from modelium.settings import Settings
from modelium.submit import submit
from modelium.work import Work
from schemas.artifact import Artifact
from schemas.errors import StoreUnavailable, UsageError
from schemas.step_io import StepResult
from schemas.step_run import StepRun, StepRunState

pytestmark = pytest.mark.s3
Machine = Callable[..., Context]


@pytest.fixture
def machine(cloud: Any, settings: Settings, tmp_path: Path) -> Machine:
    """Make the context of a machine, by name; the collector's grace is none unless it is given."""

    def make(name: str, grace_s: float | None = 0.0, **chosen: object) -> Context:
        shared = {
            "home": tmp_path / name,
            "database_url": f"sqlite:///{tmp_path / 'shared.db'}",
            "store_url": cloud.url,
            "s3_endpoint_url": cloud.endpoint_url,
        }
        context = Context(settings.model_copy(update={**shared, **chosen}))
        if grace_s is not None:
            assert context.store.shared is not None
            bucket = context.store.shared.bucket
            vars(context)["store"] = Store(context.home.artifacts, shared=SharedArtifacts(bucket, grace_s=grace_s))
        return context

    return make


def dropped(context: Context, folder: Path, text: str) -> str:
    path = folder / f"{text}.onnx"
    path.write_text(text)
    return submit(context, drops(path)[0], source="cli").job_id


def record(context: Context, job_id: str, output: str, run_id: str = "") -> None:
    run = StepRun(
        id=run_id or job_id[::-1], job_id=job_id, attempt=1, kind="onnx_optimize", toolchain="onnx", cache_key="k",
        state=StepRunState.SUCCEEDED, outputs={"model": output}, started_at=db.now(),
    )  # fmt: skip
    step_runs.save(context.database, run)


def made(context: Context, folder: Path, job_id: str) -> str:
    """Store a step's output and record the run that made it; return its sha256."""
    path = folder / "output"
    path.write_text(f"made for {job_id}")
    sha256 = context.store.put(path).sha256
    record(context, job_id, sha256)
    return sha256


def test_collecting_frees_the_bucket_and_old_drops_here_but_never_a_drop_itself(
    machine: Machine, cloud: Any, tmp_path: Path
) -> None:
    first, second = machine("first"), machine("second")
    job_id = dropped(first, tmp_path, "one")
    output = made(first, tmp_path, job_id)
    second.store.path(output)
    assert collect(second, older_than_days=0) == collect(second, older_than_days=0, dry_run=True)
    jobs.cancel(first.database, job_id)
    original = jobs.find(first.database, job_id).artifact_sha256
    told = collect(first, older_than_days=0)
    assert (told.artifacts, told.evicted, told.bucket_bytes) == (1, 1, len(f"made for {job_id}"))
    assert first.store.size_bytes() == 0 and first.store.path(original).read_text() == "one"
    assert cloud.objects("manifests") == [f"manifests/{original}.json"] and len(cloud.objects("blobs")) == 1
    assert collect(second, older_than_days=0).artifacts == 1, "the copy that another machine had"
    assert not second.store.has(output)


def test_what_was_used_lately_is_not_collected_whatever_the_database_says(machine: Machine, tmp_path: Path) -> None:
    first = machine("first", grace_s=None)
    job_id = dropped(first, tmp_path, "one")
    output = made(first, tmp_path, job_id)
    jobs.cancel(first.database, job_id)
    assert collect(first, older_than_days=0).artifacts == 0
    assert machine("second").store.path(output).exists()


def test_what_another_machine_records_in_the_moment_of_collecting_comes_back(machine: Machine, tmp_path: Path) -> None:
    first, second = machine("first"), machine("second")
    ended, running = dropped(first, tmp_path, "one"), dropped(first, tmp_path, "two")
    output = made(first, tmp_path, ended)
    jobs.cancel(first.database, ended)

    class Overtaken(SharedArtifacts):
        def delete(self, sha256: str) -> None:
            record(second, running, sha256, "reused")
            super().delete(sha256)

    assert first.store.shared is not None
    first.store.shared = Overtaken(first.store.shared.bucket, grace_s=0.0)
    collect(first, older_than_days=0)
    assert second.store.path(output).read_text() == f"made for {ended}"


def test_a_drop_stays_where_it_is_until_the_bucket_is_back(machine: Machine, tmp_path: Path) -> None:
    away, back = machine("first", None, s3_endpoint_url="http://127.0.0.1:9"), machine("first", None)
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    path = incoming / "model.onnx"
    path.write_text("weights")
    refusals: list[StoreUnavailable] = []
    received: list[str] = []

    def arrive(arrival: Any) -> None:
        try:
            received.append(submit(back if refusals else away, arrival, source="folder").job_id)
        except StoreUnavailable as refused:
            refusals.append(refused)
            raise

    source = FolderSource(incoming, arrive, settle_s=0.1, folder_quiet_s=0.2, rescan_s=0.5)
    source.start()
    try:
        deadline = time.monotonic() + 20
        while not received:
            assert time.monotonic() < deadline, refusals
            time.sleep(0.05)
    finally:
        source.stop()
    assert path.exists() and len(refusals) == 1
    assert machine("second", None).store.has(jobs.find(back.database, received[0]).artifact_sha256)


def test_the_doctor_tries_the_bucket_and_leaves_nothing(
    machine: Machine, cloud: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(context: Context) -> doctor.Check:
        return doctor._guarded("bucket", lambda: doctor._bucket(context))

    assert found(machine("here")).level == "ok" and cloud.objects() == []
    gone = found(machine("there", None, store_url="s3://no-such-bucket"))
    assert gone.level == "fail" and "There is no bucket" in gone.found and "MODELIUM_STORE_URL" in gone.mend
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "sesame")
    wrong = found(machine("elsewhere"))
    assert wrong.level == "fail" and "sesame" not in wrong.found + wrong.mend


@pytest.fixture
def logged(settings: Settings) -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    logs.configure(settings.model_copy(update={"log_level": "debug"}), stream=stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)


def test_no_log_holds_a_secret_however_much_is_logged(
    cloud: Any, logged: io.StringIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "open-sesame")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "hush-hush")
    path = tmp_path / "model.pt"
    path.write_text("weights")
    shared = SharedArtifacts(Bucket(cloud.url, endpoint_url=cloud.endpoint_url))
    with pytest.raises(StoreUnavailable):
        Store(tmp_path / "store", shared=shared).put(path)
    logging.getLogger("modelium").debug("this is logged")
    assert "this is logged" in logged.getvalue()
    assert "sesame" not in logged.getvalue() and "hush" not in logged.getvalue()


@pytest.mark.parametrize(
    "chosen",
    [
        {"STORE_URL": "s3://key:sesame@bucket/prefix"},
        {"STORE_URL": "https://bucket/prefix"},
        {"STORE_URL": "s3:///prefix"},
        {"S3_ENDPOINT_URL": "https://key:sesame@host"},
        {"S3_ENDPOINT_URL": "host:9000"},
        {"STORE_URL": "s3://bucket", "ALLOW_NO_ISOLATION": "true"},
    ],
)
def test_a_bucket_is_refused_with_secrets_in_its_address_or_without_isolation_of_steps(
    chosen: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in chosen.items():
        monkeypatch.setenv(f"MODELIUM_{name}", value)
    with pytest.raises(UsageError) as refused:
        settings.load()
    assert "sesame" not in str(refused.value)


def test_a_step_waits_for_the_bucket_with_its_place_given_back(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_lease, "runtime_root", lambda: tmp_path)  # other steps run on this machine meanwhile
    first = machine("first")
    give_up = time.monotonic() + 20
    others = 0

    class Slow(SharedArtifacts):
        def share(self, artifact: Artifact, blobs: Mapping[str, Path]) -> Artifact:
            nonlocal others
            with machine_lease.hold(exclusive=True, should_stop=lambda: time.monotonic() > give_up):
                others += 1
            return super().share(artifact, blobs)

    assert first.store.shared is not None
    first.store.shared = Slow(first.store.shared.bucket, grace_s=0.0)
    (tmp_path / "made").write_text("made")
    output: Any = SimpleNamespace(
        result=StepResult(ok=True, outputs={"model": "made"}), outputs={"model": tmp_path / "made"},
        isolation=SimpleNamespace(backend="none"), usage=None, log="",
    )  # fmt: skip
    claim: Any = None
    with machine_lease.hold(exclusive=False, memory_bytes=1 << 20) as lease:
        ended = Work(first, claim)._collect(output, lease)
    assert others == 1 and first.store.shared.has(ended["outputs"]["model"])
