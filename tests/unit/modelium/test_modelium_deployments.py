"""What is published, rolled back and taken away, whatever serves it: one name, its versions, the database in step."""

from __future__ import annotations

import hashlib
from pathlib import Path
from uuid import uuid4

import pytest

from modelium import arrivals, db, deployments, jobs
from modelium.context import Context
from schemas.artifact import Artifact, ArtifactKind
from schemas.deployment import Deployment
from schemas.descriptor import Format, KnownBy, ModelDescriptor, TensorSpec
from schemas.engine import EngineSheet
from schemas.errors import Conflict
from schemas.event import Event
from schemas.evidence import BatchProof, ParityReport
from schemas.job import Job
from schemas.precision import Precision
from schemas.target import TargetProfile, Tolerance

DESCRIPTOR = ModelDescriptor(artifact_sha256="0" * 64, format=Format.ONNX, size_bytes=1)
FILES = {
    Format.ONNX: ("model.onnx",),
    Format.OPENVINO: ("model.xml", "model.bin"),
    Format.TORCHSCRIPT: ("model.pt",),
}


def tensor(name: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name=name, dtype="float32", shape=shape, known_by=KnownBy.PROBE)


PARITY = ParityReport(
    passed=True,
    reason="Over 4 cases, y differs by at most 0.",
    precision=Precision.FP32,
    tolerance=Tolerance(),
    outputs=(),
    cases=(),
    real_samples=False,
    batching=BatchProof(holds=True, reason="It holds.", sizes=(1, 2, 8)),
    inputs=(tensor("x", "batch", 4),),
    served_outputs=(tensor("y", "batch", 2),),
)


@pytest.fixture
def ready(context: Context) -> Context:
    context.home.prepare()
    context.database.migrate()
    return context


def job(context: Context, name: str) -> Job:
    content = uuid4().hex
    sha256 = hashlib.sha256(content.encode()).hexdigest()
    event = Event(
        id=content, source="folder", uri=f"file:///in/{content}", size_bytes=1, etag=content,
        idempotency_key=sha256, arrived_at=db.now(),
    )  # fmt: skip
    artifact = Artifact(sha256=sha256, kind=ArtifactKind.FILE, size_bytes=1)
    arrived = arrivals.record(context.database, event, artifact, label="a", target=TargetProfile())
    return jobs.find(context.database, arrived.job_id).model_copy(update={"name": name})


def stored(context: Context, format: Format, content: str) -> str:
    return context.store.put_files({name: f"{name} {content}".encode() for name in FILES[format]}).sha256


def engines(context: Context, content: str) -> str:
    data = f"engine {content}".encode()
    digest = hashlib.sha256(data).hexdigest()
    sheet = EngineSheet.model_validate(
        {
            "builder": "tensorrt-rtx",
            "builder_version": "1.7",
            "graph_sha256": "0" * 64,
            "engines": [{"file": "model.engine.sm_86", "sm": "sm_86", "sha256": digest, "size_bytes": len(data)}],
            "inputs": PARITY.inputs,
            "outputs": PARITY.served_outputs,
        }
    )
    files: dict[str, Path | bytes] = {
        "model.onnx": content.encode(),
        "model.engine.sm_86": data,
        "engines.json": sheet.model_dump_json().encode(),
    }
    return context.store.put_files(files).sha256


def publish(context: Context, name: str, format: Format, sha256: str) -> Deployment:
    return deployments.publish(
        context,
        job=job(context, name),
        contender="candidate",
        model_sha256=sha256,
        parity=PARITY,
        descriptor=DESCRIPTOR,
        format=format,
    )


def test_each_version_of_a_name_keeps_its_own_format(ready: Context) -> None:
    for format in FILES:
        publish(ready, "iris", format, stored(ready, format, format.value))
    known = deployments.everything(ready, "iris")
    assert [d.spec.format for d in known] == list(FILES) and [d.version for d in known] == [1, 2, 3]
    assert "name: pytorch" in (ready.home.manifests / "iris.yaml").read_text()
    config = ready.home.repository / "iris" / "config.pbtxt"
    assert deployments.rollback(ready, "iris").spec.format is Format.OPENVINO
    assert 'backend: "openvino"' in config.read_text()
    assert deployments.rollback(ready, "iris", 1).spec.format is Format.ONNX
    assert 'backend: "onnxruntime"' in config.read_text()
    assert deployments.undeploy(ready, "iris") == 3 and not config.exists()


def test_engines_are_a_deployment_with_a_manifest_and_no_entry_of_the_repository(ready: Context) -> None:
    first = publish(ready, "iris", Format.TENSORRT_RTX, engines(ready, "first"))
    publish(ready, "iris", Format.TENSORRT_RTX, engines(ready, "second"))
    manifest = ready.home.engines / "iris" / "manifest.json"
    assert first.manifest == str(manifest) and '"version": 2' in manifest.read_text()
    assert "no server was asked" in first.health.detail and list(ready.home.repository.iterdir()) == []
    assert deployments.rollback(ready, "iris").version == 1 and '"version": 1' in manifest.read_text()
    with pytest.raises(Conflict, match="an application that loads engines"):
        publish(ready, "iris", Format.ONNX, stored(ready, Format.ONNX, "a"))
    assert deployments.undeploy(ready, "iris") == 2 and not manifest.exists()
    assert publish(ready, "iris", Format.ONNX, stored(ready, Format.ONNX, "a")).version == 3
