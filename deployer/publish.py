"""Publishing, rolling back and undeploying: each change of what is served is one rename.

An entry is a folder ``<repository>/<name>`` with one folder a version. Its config.pbtxt names the one version that is
served, its label file included, so that replacing config.pbtxt is the commit: a version's folder and labels are put in
place before it, unseen by a server, and everything before the rename can be thrown away. A new entry appears whole by
renaming its folder. A crash at any moment leaves the entry as it was or as it shall be; nothing needs recovery, and no
rename has to exchange two folders, which not every file system can.

Staging lies beside the repository, on the same file system, where no server looks.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deployer.backends import MODEL_FILES, backend_of
from deployer.config_checks import check_entry, require_entry
from deployer.config_text import CONFIG_FILE, config_text, labels_file, labels_text, parse_config
from deployer.model_files import copy_files, copy_model, same_files, sync_folder, write_file
from schemas.deployment import EntrySpec
from schemas.errors import Conflict, NotFound

STAGING = ".staging"
TOKENIZER = "tokenizer"
Phase = Callable[[str], None]


@dataclass(frozen=True)
class Published:
    """What is served now: the entry's folder and the text of its config.pbtxt."""

    entry: Path
    config: str


def _nothing(phase: str) -> None:
    """Pass ``phase`` by; a test kills the process here."""


def publish(
    spec: EntrySpec,
    model: Path,
    repository: Path,
    archive: Path,
    *,
    model_entry: str | None = None,
    tokenizer: Mapping[str, Path] | None = None,
    on_phase: Phase = _nothing,
) -> Published:
    """Publish ``model`` as version ``spec.version`` of ``spec.name`` and make it the one that is served.

    ``model`` is a stored file or folder, copied and never linked; ``model_entry`` names the model file inside a
    folder where it is not called as the backend calls it. Versions of one name may have different formats: each has
    its own backend in its own configuration. ``tokenizer`` are files by name that clients need to prepare requests;
    they go into the version's folder ``tokenizer``, which no server reads. Publishing the same version with the same
    bytes again is done at once, so that a repeated task is harmless. Raises Conflict when the name belongs to an entry
    that is not ours, or the version that is served now has other bytes.
    """
    entry = repository / spec.name
    config = config_text(spec)
    with _locked(repository, spec.name) as staging:
        if entry.exists() and not (archive / spec.name).is_dir():
            raise Conflict(
                f"The repository has an entry {spec.name} that Modelium did not publish.",
                hint="Move it away, or give the model another name in its sidecar.",
            )
        staged = staging / f"{spec.name}.{uuid.uuid4().hex}"
        try:
            staged.mkdir(mode=0o755)
            copy_model(model, staged / str(spec.version), model_entry, backend_of(spec.format))
            if tokenizer:
                copy_files(dict(tokenizer), staged / str(spec.version) / TOKENIZER)
            on_phase("copied")
            if spec.labels_output and spec.labels:
                write_file(staged / labels_file(spec.version), labels_text(spec.labels))
            write_file(staged / CONFIG_FILE, config)
            sync_folder(staged)
            require_entry(staged, spec.name)
            on_phase("staged")
            if entry.exists():
                _add_version(staged, entry, spec.version, archive, on_phase)
            else:
                _archive(staged, archive / spec.name / str(spec.version))
                on_phase("archived")
                staged.rename(entry)
                sync_folder(repository)
            on_phase("published")
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    return Published(entry, config)


def rollback(name: str, version: int, repository: Path, archive: Path, *, on_phase: Phase = _nothing) -> Published:
    """Serve ``version`` of ``name`` again, with the configuration it had. Raises NotFound when it is not kept."""
    entry = repository / name
    with _locked(repository, name) as staging:
        kept = archive / name / str(version)
        if not entry.is_dir():
            raise NotFound(f"There is no deployment {name}.", hint="List them with: modelium deployments.")
        if not (kept / CONFIG_FILE).is_file() or not _has_model(entry / str(version)):
            have = ", ".join(str(number) for number in versions(name, repository)) or "none"
            raise NotFound(f"Version {version} of {name} is not kept.", hint=f"Kept: {have}.")
        config = (kept / CONFIG_FILE).read_text(encoding="utf-8")
        staged = staging / f"{name}.{uuid.uuid4().hex}"
        try:
            shutil.copytree(kept, staged)
            on_phase("staged")
            _commit(staged, entry, version, on_phase)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    return Published(entry, config)


def undeploy(name: str, repository: Path, archive: Path, *, on_phase: Phase = _nothing) -> None:
    """Take the whole entry out of the repository, all versions; the archive of configurations is kept.

    Raises NotFound when there is no such entry, Conflict when it is not ours.
    """
    entry = repository / name
    with _locked(repository, name) as staging:
        if not entry.is_dir():
            raise NotFound(f"There is no deployment {name}.", hint="List them with: modelium deployments.")
        if not (archive / name).is_dir():
            raise Conflict(f"The entry {name} was not published by Modelium.", hint="Remove it by hand if you mean it.")
        gone = staging / f"{name}.{uuid.uuid4().hex}"
        entry.rename(gone)
        sync_folder(repository)
        on_phase("removed")
        shutil.rmtree(gone)


def versions(name: str, repository: Path) -> tuple[int, ...]:
    """Return the versions whose files are in the entry, in order."""
    entry = repository / name
    if not entry.is_dir():
        return ()
    return tuple(sorted(int(p.name) for p in entry.iterdir() if p.name.isdecimal() and _has_model(p)))


def _has_model(version_folder: Path) -> bool:
    return any((version_folder / name).is_file() for name in MODEL_FILES)


def active_version(name: str, repository: Path) -> int | None:
    """Return the version that is served, None when there is no such entry."""
    path = repository / name / CONFIG_FILE
    if not path.is_file():
        return None
    served = list(parse_config(path.read_text(encoding="utf-8")).version_policy.specific.versions)
    return int(served[0]) if served else None


def prune(name: str, keep: int, repository: Path) -> tuple[int, ...]:
    """Remove all but the served version and the ``keep`` newest others; return those removed."""
    with _locked(repository, name) as staging:
        active = active_version(name, repository)
        others = [version for version in versions(name, repository) if version != active]
        removed = others[: max(0, len(others) - max(0, keep))]
        for version in removed:
            gone = staging / f"{name}.{uuid.uuid4().hex}"
            (repository / name / str(version)).rename(gone)
            (repository / name / labels_file(version)).unlink(missing_ok=True)
            shutil.rmtree(gone)
    return tuple(removed)


def _add_version(staged: Path, entry: Path, version: int, archive: Path, on_phase: Phase) -> None:
    """Put a version into an entry that is being served."""
    there = entry / str(version)
    if there.exists() and same_files(staged / str(version), there):
        pass
    elif there.exists():
        if active_version(entry.name, entry.parent) == version and not check_entry(entry):
            raise Conflict(
                f"Version {version} of {entry.name} is served now and has other bytes.",
                hint="A published version never changes; publish the next one.",
            )
        # Left by a crash before its commit, or rolled back from: no server reads it.
        there.rename(staged / "replaced")
        (staged / str(version)).rename(there)
    else:
        (staged / str(version)).rename(there)
    on_phase("version")
    _archive(staged, archive / entry.name / str(version))
    on_phase("archived")
    _commit(staged, entry, version, on_phase)


def _commit(staged: Path, entry: Path, version: int, on_phase: Phase) -> None:
    """Rename labels, then config.pbtxt, from ``staged`` into the entry; the second rename is the commit."""
    labels = staged / labels_file(version)
    if labels.is_file():
        labels.rename(entry / labels.name)
        on_phase("labels")
    sync_folder(entry)
    (staged / CONFIG_FILE).rename(entry / CONFIG_FILE)
    sync_folder(entry)
    on_phase("committed")


def _archive(staged: Path, kept: Path) -> None:
    """Keep the version's config.pbtxt and labels, so that a rollback restores exactly what was served."""
    kept.mkdir(parents=True, exist_ok=True)
    for path in sorted(staged.iterdir()):
        if path.is_file():
            temporary = kept / f".{path.name}.{uuid.uuid4().hex}"
            write_file(temporary, path.read_text(encoding="utf-8"))
            temporary.rename(kept / path.name)
    sync_folder(kept)


@contextmanager
def _locked(repository: Path, name: str) -> Iterator[Path]:
    """Hold the entry's lock and yield the staging folder, swept of what a killed process left under this name."""
    repository.mkdir(parents=True, exist_ok=True)
    staging = repository.parent / STAGING
    staging.mkdir(exist_ok=True)
    if staging.stat().st_dev != repository.stat().st_dev:
        raise Conflict(
            f"The model repository {repository} is a file system of its own, and nothing can be renamed into it.",
            hint="Mount the folder above it instead, so that the repository and its staging folder share one.",
        )
    descriptor = os.open(staging / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        # A DNS label has no dot: the prefix is this name's alone.
        for left in staging.glob(f"{name}.*"):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
        yield staging
    finally:
        os.close(descriptor)
