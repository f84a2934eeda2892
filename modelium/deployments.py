"""Deployments in the database and in the repository, kept in step under one lock a name."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from pathlib import Path

from sqlalchemy import Connection, delete, func, select, update

from modelium import db, jobs, machine_lease
from modelium.context import Context
from schemas.deployment import Deployment, DeploymentState, EntrySpec, Health
from schemas.descriptor import Format, ModelDescriptor
from schemas.errors import Conflict, NotFound
from schemas.evidence import ParityReport
from schemas.job import Job
from schemas.plan import ORIGINAL
from schemas.target import TargetProfile

_PREPARES = re.compile(
    r"(tokenizer(_config)?|special_tokens_map|added_tokens|(pre)?processor_config|vocab)\.json"
    r"|vocab\.txt|merges\.txt|chat_template\.jinja|(tokenizer|sentencepiece\.bpe|spiece|spm)\.model"
)


def publish(
    context: Context,
    *,
    job: Job,
    contender: str,
    model_sha256: str,
    parity: ParityReport,
    descriptor: ModelDescriptor,
    format: Format = Format.ONNX,
    original_sha256: str | None = None,
) -> Deployment:
    """Publish a model as the next version of the job's name; a second call for the same attempt changes nothing."""
    import deployer
    from deployer.entry import entry_spec
    from deployer.health import check as check_health
    from deployer.publish import versions

    if format is Format.TENSORRT_RTX:
        return _publish_engines(context, job, contender, model_sha256, parity)
    assert job.name is not None
    with _lock(context, job.name):
        existing = _of_attempt(context, job)
        if existing is not None:
            return existing
        _check_kind(context, job.name, format)
        active = active_version(context, job.name)
        # The repository may be one ahead: a crash between publishing and recording leaves its version behind.
        version = max(_last_version(context, job.name), *versions(job.name, context.home.repository), 0) + 1
        spec = entry_spec(job.name, version, parity, descriptor, job.target, format=format)
        published = deployer.publish(
            spec,
            context.store.path(model_sha256),
            context.home.repository,
            context.home.archive,
            model_entry=descriptor.entry if contender == ORIGINAL else None,
            tokenizer=_tokenizer(context, original_sha256) if descriptor.format is Format.HUGGINGFACE else None,
        )
        manifest = _write_manifest(context, spec, model_sha256, descriptor)
        deployment = Deployment(
            name=job.name,
            version=version,
            job_id=job.id,
            contender=contender,
            model_sha256=model_sha256,
            state=DeploymentState.ACTIVE,
            entry=str(published.entry),
            manifest=str(manifest),
            config=published.config,
            spec=spec,
            previous_version=active,
            created_at=db.now(),
        )
        health = check_health(context.settings.triton_url, job.name, version)
        deployment = deployment.model_copy(update={"health": health})
        _insert(context, job, deployment)
        deployer.prune(job.name, context.settings.keep_versions, context.home.repository)
        return deployment


def _publish_engines(context: Context, job: Job, contender: str, model_sha256: str, parity: ParityReport) -> Deployment:
    """Publish engines, which an application loads and no server, as the next version of the job's name."""
    from deployer import engines

    assert job.name is not None
    with _lock(context, job.name):
        existing = _of_attempt(context, job)
        if existing is not None:
            return existing
        _check_kind(context, job.name, Format.TENSORRT_RTX)
        root = context.home.engines
        version = max(_last_version(context, job.name), *engines.engine_versions(job.name, root), 0) + 1
        created_at = db.now()
        model = context.store.path(model_sha256)
        published = engines.publish_engines(job.name, version, model, root, parity=parity, created_at=created_at)
        deployment = Deployment(
            name=job.name,
            version=version,
            job_id=job.id,
            contender=contender,
            model_sha256=model_sha256,
            state=DeploymentState.ACTIVE,
            entry=str(published.folder),
            manifest=str(root / job.name / engines.MANIFEST_FILE),
            config="",
            spec=engines.entry_spec(published.manifest),
            health=Health(detail="Engines are loaded by an application; no server was asked."),
            previous_version=active_version(context, job.name),
            created_at=created_at,
        )
        _insert(context, job, deployment)
        return deployment


def publish_whole(
    context: Context, *, job: Job, model_sha256: str, descriptor: ModelDescriptor, target: TargetProfile
) -> Deployment:
    """Publish a language model as it is, for a server of its own, as the next version of the job's name."""
    from deployer import llm_server

    assert job.name is not None
    with _lock(context, job.name):
        existing = _of_attempt(context, job)
        if existing is not None:
            return existing
        _check_kind(context, job.name, descriptor.format)
        folder = context.home.model_files / job.name
        # A crash between copying and recording leaves its version behind; the next one is another.
        version = max(_last_version(context, job.name), *llm_server.versions(folder), 0) + 1
        spec = llm_server.entry_spec(job.name, version, descriptor, hardware=target.hardware)
        model = context.store.path(model_sha256)
        entry = llm_server.publish(model, folder, version, entry=descriptor.entry)
        deployment = Deployment(
            name=job.name,
            version=version,
            job_id=job.id,
            contender=ORIGINAL,
            model_sha256=model_sha256,
            state=DeploymentState.ACTIVE,
            entry=str(entry),
            manifest=str(_write_manifest(context, spec, model_sha256, descriptor)),
            config="",
            spec=spec,
            previous_version=active_version(context, job.name),
            created_at=db.now(),
        )
        _insert(context, job, deployment)
        llm_server.prune(folder, version, context.settings.keep_versions)
        return deployment


def rollback(context: Context, name: str, version: int | None = None) -> Deployment:
    """Serve an earlier version again: ``version``, else the one before the active one."""
    import deployer
    from deployer import llm_server

    with _lock(context, name):
        known = {d.version: d for d in everything(context, name)}
        if not known:
            raise NotFound(f"There is no deployment {name!r}.", hint="`modelium deployments` lists them.")
        active = active_version(context, name)
        wanted = version
        if wanted is None:
            earlier = [v for v in sorted(known) if active is None or v < active]
            if not earlier:
                raise Conflict(f"{name} has no version before {active}.", hint="There is nothing to roll back to.")
            wanted = earlier[-1]
        if wanted not in known:
            raise NotFound(f"{name} has no version {wanted}.", hint=f"It has: {', '.join(map(str, sorted(known)))}.")
        if wanted == active:
            raise Conflict(f"Version {wanted} of {name} is the active one.", hint="Nothing to do.")
        if llm_server.is_served_whole(known[wanted].spec.format):
            llm_server.require(context.home.model_files / name, name, wanted)
        elif known[wanted].spec.format is Format.TENSORRT_RTX:
            deployer.rollback_engines(name, wanted, context.home.engines)
        else:
            deployer.rollback(name, wanted, context.home.repository, context.home.archive)
        descriptor = jobs.load_document(context.database, known[wanted].job_id, "descriptor")
        if descriptor is not None and known[wanted].spec.format is not Format.TENSORRT_RTX:
            again = known[wanted]
            _write_manifest(context, again.spec, again.model_sha256, ModelDescriptor.model_validate(descriptor))
        with context.database.write() as connection:
            _set_active(context, connection, name, wanted)
        return known[wanted].model_copy(update={"state": DeploymentState.ACTIVE})


def undeploy(context: Context, name: str) -> int:
    """Take a name out of the repository; its models stay in the store. Returns how many versions it had."""
    import deployer
    from deployer import llm_server

    with _lock(context, name):
        known = everything(context, name)
        if not any(d.state is not DeploymentState.RETIRED for d in known):
            raise NotFound(f"There is no deployment {name!r}.", hint="`modelium deployments` lists them.")
        served = [d.spec.format for d in known if d.state is not DeploymentState.RETIRED]
        if any(llm_server.is_served_whole(format_) for format_ in served):
            llm_server.undeploy(context.home.model_files / name)
        elif Format.TENSORRT_RTX in served:
            deployer.undeploy_engines(name, context.home.engines)
        else:
            deployer.undeploy(name, context.home.repository, context.home.archive)
        (context.home.manifests / f"{name}.yaml").unlink(missing_ok=True)
        with context.database.write() as connection:
            for deployment in known:
                _save(connection, deployment.model_copy(update={"state": DeploymentState.RETIRED}))
            connection.execute(delete(db.names).where(db.names.c.name == name))
        return len(known)


def everything(context: Context, name: str | None = None) -> list[Deployment]:
    """Return the deployments, by name and version; those of one name when given."""
    query = select(db.deployments.c.document).order_by(db.deployments.c.name, db.deployments.c.version)
    if name is not None:
        query = query.where(db.deployments.c.name == name)
    with context.database.read() as connection:
        return [Deployment.model_validate(d) for d in connection.execute(query).scalars().all()]


def active(context: Context, name: str) -> Deployment:
    """Return the version of ``name`` that is served. Raises NotFound."""
    for deployment in everything(context, name):
        if deployment.state is DeploymentState.ACTIVE:
            return deployment
    raise NotFound(f"There is no deployment {name!r}.", hint="`modelium deployments` lists them.")


def active_version(context: Context, name: str) -> int | None:
    """Return the version that is served, or None."""
    query = select(db.deployments.c.version).where(
        db.deployments.c.name == name, db.deployments.c.state == DeploymentState.ACTIVE.value
    )
    with context.database.read() as connection:
        return connection.execute(query).scalar()


def _lock(context: Context, name: str) -> AbstractContextManager[None]:
    return machine_lease.locked(context.home.runtime / f"deploy-{name}.lock")


def _last_version(context: Context, name: str) -> int:
    with context.database.read() as connection:
        query = select(func.max(db.deployments.c.version)).where(db.deployments.c.name == name)
        return int(connection.execute(query).scalar() or 0)


def _of_attempt(context: Context, job: Job) -> Deployment | None:
    query = select(db.deployments.c.document).where(
        db.deployments.c.job_id == job.id, db.deployments.c.attempt == job.attempt
    )
    with context.database.read() as connection:
        document = connection.execute(query).scalar()
    return Deployment.model_validate(document) if document else None


def _tokenizer(context: Context, original_sha256: str | None) -> dict[str, Path]:
    """Return the files of a Hugging Face folder that prepare its inputs: tokenizer, processor, vocabulary."""
    if original_sha256 is None:
        return {}
    folder = context.store.path(original_sha256)
    return {path.name: path for path in sorted(folder.iterdir()) if path.is_file() and _PREPARES.fullmatch(path.name)}


def _check_kind(context: Context, name: str, format_: Format) -> None:
    """Raise Conflict when the name's versions belong to another kind of server than a model of ``format_``."""
    then = _server_of(format_)
    served = [d for d in everything(context, name) if d.state is not DeploymentState.RETIRED]
    now = next((_server_of(d.spec.format) for d in served if _server_of(d.spec.format) != then), None)
    if now is not None:
        raise Conflict(
            f"{name} is served by {now}, and this version would be by {then}.",
            hint=f"`modelium undeploy {name}` first, or write `name: another-name` into the model's sidecar.",
        )


def _server_of(format_: Format) -> str:
    from deployer.llm_server import is_served_whole

    if format_ is Format.TENSORRT_RTX:
        return "an application that loads engines"
    return "a server of its own" if is_served_whole(format_) else "Triton"


def _insert(context: Context, job: Job, deployment: Deployment) -> None:
    """Record the deployment as the active one of its name."""
    with context.database.write() as connection:
        _set_active(context, connection, deployment.name, None)
        connection.execute(
            db.deployments.insert().values(
                name=deployment.name,
                version=deployment.version,
                job_id=job.id,
                attempt=job.attempt,
                state=deployment.state.value,
                document=deployment.model_dump(mode="json"),
                created_at=deployment.created_at,
            )
        )


def _set_active(context: Context, connection: Connection, name: str, version: int | None) -> None:
    """Make ``version`` the active one and every other one previous."""
    query = select(db.deployments.c.document).where(db.deployments.c.name == name)
    for document in connection.execute(query).scalars().all():
        deployment = Deployment.model_validate(document)
        if deployment.version == version:
            state = DeploymentState.ACTIVE
        elif deployment.state is DeploymentState.RETIRED:
            continue
        else:
            state = DeploymentState.PREVIOUS
        _save(connection, deployment.model_copy(update={"state": state}))


def _save(connection: Connection, deployment: Deployment) -> None:
    connection.execute(
        update(db.deployments)
        .where(db.deployments.c.name == deployment.name, db.deployments.c.version == deployment.version)
        .values(state=deployment.state.value, document=deployment.model_dump(mode="json"))
    )


def _write_manifest(context: Context, spec: EntrySpec, model_sha256: str, descriptor: ModelDescriptor) -> Path:
    from deployer import kserve, llm_server

    model_bytes = context.store.artifact(model_sha256).size_bytes
    storage_uri = f"{context.settings.storage_uri.rstrip('/')}/{spec.name}"
    if llm_server.is_served_whole(spec.format):
        document = llm_server.manifest(
            spec,
            model_bytes=model_bytes,
            context_length=descriptor.context_length,
            llama_image=context.settings.llama_cpp_image,
            storage_uri=storage_uri,
            namespace=context.settings.namespace,
            cpus=context.settings.threads,
        )
        text = llm_server.manifest_yaml(document, files=context.home.model_files / spec.name / str(spec.version))
    else:
        document = kserve.manifest(
            spec,
            model_bytes=model_bytes,
            memory_bytes=descriptor.memory_bytes,
            storage_uri=storage_uri,
            namespace=context.settings.namespace,
            cpus=context.settings.threads,
        )
        text = kserve.manifest_yaml(document, entry_name=spec.name)
    path = context.home.manifests / f"{spec.name}.yaml"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(path)
    return path
