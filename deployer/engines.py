"""Publishing engines: a folder a version with the engines, their graph, and a manifest of what was shown.

An engine is not an entry of a model repository: the application that links TensorRT-RTX loads it. ``<root>/<name>/``
holds one folder a version and ``manifest.json``, a copy of the current version's; replacing that file is the commit.
"""

from __future__ import annotations

import hashlib
import shlex
import shutil
import uuid
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydantic import ValidationError

from deployer.model_files import copy_file, same_files, sync_folder, write_file
from schemas.deployment import EntrySpec
from schemas.descriptor import Format
from schemas.engine import EngineManifest, EngineSheet
from schemas.errors import Conflict, ModeliumError, NotFound
from schemas.evidence import ParityReport

MANIFEST_FILE = "manifest.json"
SHEET_FILE = "engines.json"
GRAPH_FILE = "model.onnx"
STAGING = ".staging"
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class PublishedEngines:
    """What is current now: the version's folder and its manifest."""

    folder: Path
    manifest: EngineManifest


def publish_engines(
    name: str, version: int, model: Path, root: Path, *, parity: ParityReport, created_at: datetime
) -> PublishedEngines:
    """Publish the engines in the stored folder ``model`` as ``version`` of ``name`` below ``root``.

    ``parity`` is of the graph that they were built from, run by onnxruntime: a proxy, and the manifest says so.
    Publishing the same version with the same bytes again changes nothing. Raises Conflict when that version has other
    bytes, and ModeliumError, our fault, when the files are not what the sheet says.
    """
    sheet = _sheet(model)
    manifest = EngineManifest(
        name=name,
        version=version,
        sheet=sheet,
        graph_file=GRAPH_FILE,
        precision=parity.precision,
        proof=f"The graph, run by onnxruntime on a CPU: {parity.reason}"[:1000],
        batching=parity.batching,
        not_shown=not_shown(sheet),
        created_at=created_at,
    )
    folder = root / name / str(version)
    staging = root / STAGING
    staging.mkdir(parents=True, exist_ok=True)
    staged = staging / f"{name}.{uuid.uuid4().hex}"
    try:
        staged.mkdir(mode=0o755)
        graph = sorted(path.name for path in model.glob(f"{GRAPH_FILE}*") if path.is_file())
        for file in (SHEET_FILE, *graph, *(engine.file for engine in sheet.engines)):
            if not (model / file).is_file() or (model / file).is_symlink():
                raise ModeliumError(f"The engines of {name} lack the file {file!r}.")
            copy_file(model / file, staged / file)
        for engine in sheet.engines:
            if _sha256(staged / engine.file) != engine.sha256:
                raise ModeliumError(f"The engine {engine.file!r} of {name} is not the one that was built.")
        sync_folder(staged)
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists() and not same_files(staged, folder):
            raise Conflict(
                f"Version {version} of the engines of {name} has other bytes.",
                hint="A published version never changes; publish the next one.",
            )
        if not folder.exists():
            staged.rename(folder)
            sync_folder(folder.parent)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    kept = _replace(root / name / f"{version}.{MANIFEST_FILE}", manifest, keep=True)
    _replace(root / name / MANIFEST_FILE, kept)
    return PublishedEngines(folder, kept)


def rollback_engines(name: str, version: int, root: Path) -> PublishedEngines:
    """Make ``version`` of ``name`` the current one again. Raises NotFound when it is not kept."""
    kept = root / name / f"{version}.{MANIFEST_FILE}"
    folder = root / name / str(version)
    if not kept.is_file() or not folder.is_dir():
        have = ", ".join(map(str, engine_versions(name, root))) or "none"
        raise NotFound(f"Version {version} of the engines of {name} is not kept.", hint=f"Kept: {have}.")
    manifest = EngineManifest.model_validate_json(kept.read_bytes())
    _replace(root / name / MANIFEST_FILE, manifest)
    return PublishedEngines(folder, manifest)


def undeploy_engines(name: str, root: Path) -> None:
    """Take all versions of ``name`` away. Raises NotFound when there are none."""
    folder = root / name
    if not folder.is_dir():
        raise NotFound(f"There are no engines {name}.", hint="List deployments with: modelium deployments.")
    (root / STAGING).mkdir(exist_ok=True)
    gone = root / STAGING / f"{name}.{uuid.uuid4().hex}"
    folder.rename(gone)
    sync_folder(root)
    shutil.rmtree(gone)


def engine_versions(name: str, root: Path) -> tuple[int, ...]:
    """Return the versions whose files are there, in order."""
    folder = root / name
    if not folder.is_dir():
        return ()
    return tuple(sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal() and path.is_dir()))


def entry_spec(manifest: EngineManifest) -> EntrySpec:
    """Return what ``manifest`` publishes in the words that every deployment is recorded in."""
    return EntrySpec(
        name=manifest.name,
        version=manifest.version,
        format=Format.TENSORRT_RTX,
        inputs=manifest.sheet.inputs,
        outputs=manifest.sheet.outputs,
        batching=manifest.batching,
        max_batch_size=0,
        hardware="gpu",
    )


def next_steps(folder: Path, manifest: Path) -> dict[str, str]:
    """Return label to command for the person who takes the engines to their GPU, where they are first run."""
    place = shlex.quote(str(folder))
    return {"engines": f"ls {place}", "what was and was not shown": f"cat {shlex.quote(str(manifest))}"}


def not_shown(sheet: EngineSheet) -> tuple[str, ...]:
    """Return what nobody has seen of these engines, a sentence each."""
    if sheet.ran:
        return ()
    architectures = ", ".join(engine.sm for engine in sheet.engines)
    return (
        f"No engine was loaded or run: they were built for {architectures} on a machine without such a GPU.",
        "That their answers are the original's was not measured; the graph they were built from was, on a CPU.",
        "Neither was their speed: latencies in the report are the graph's on a CPU, and say nothing about a GPU.",
    )


def _sheet(model: Path) -> EngineSheet:
    try:
        return EngineSheet.model_validate_json((model / SHEET_FILE).read_bytes())
    except (OSError, ValidationError) as error:
        raise ModeliumError(f"The model has no readable {SHEET_FILE}.") from error


def _replace(path: Path, manifest: EngineManifest, *, keep: bool = False) -> EngineManifest:
    """Write ``manifest`` to ``path`` at once; with ``keep`` a manifest that is there already stays and is returned."""
    if keep and path.is_file():
        return EngineManifest.model_validate_json(path.read_bytes())
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    write_file(temporary, manifest.model_dump_json(indent=1) + "\n")
    temporary.replace(path)
    sync_folder(path.parent)
    return manifest


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
