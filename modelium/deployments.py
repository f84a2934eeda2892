"""Deployments in the database and in the repository, kept in step under one lock a name."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from sqlalchemy import Connection, delete, func, select, update

from modelium import db, jobs, machine_lease
from modelium.context import Context
from schemas.deployment import Deployment, DeploymentState, EntrySpec
from schemas.descriptor import ModelDescriptor
from schemas.errors import Conflict, NotFound
from schemas.evidence import ParityReport
from schemas.job import Job
from schemas.plan import ORIGINAL


def publish(
    context: Context, *, job: Job, contender: str, model_sha256: str, parity: ParityReport, descriptor: ModelDescriptor
) -> Deployment:
    """Publish a model as the next version of the job's name; a second call for the same attempt changes nothing."""
    import deployer
    from deployer.entry import entry_spec
    from deployer.health import check as check_health
    from deployer.publish import versions

    assert job.name is not None
    with _lock(context, job.name):
        existing = _of_attempt(context, job)
        if existing is not None:
            return existing
        active = active_version(context, job.name)
        # The repository may be one ahead: a crash between publishing and recording leaves its version behind.
        version = max(_last_version(context, job.name), *versions(job.name, context.home.repository), 0) + 1
        spec = entry_spec(job.name, version, parity, descriptor, job.target)
        published = deployer.publish(
            spec,
            context.store.path(model_sha256),
            context.home.repository,
            context.home.archive,
            model_entry=descriptor.entry if contender == ORIGINAL else None,
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
        with context.database.write() as connection:
            _set_active(context, connection, job.name, None)
            connection.execute(
                db.deployments.insert().values(
                    name=job.name,
                    version=version,
                    job_id=job.id,
                    attempt=job.attempt,
                    state=deployment.state.value,
                    document=deployment.model_dump(mode="json"),
                    created_at=deployment.created_at,
                )
            )
        deployer.prune(job.name, context.settings.keep_versions, context.home.repository)
        return deployment


def rollback(context: Context, name: str, version: int | None = None) -> Deployment:
    """Serve an earlier version again: ``version``, else the one before the active one."""
    import deployer

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
        deployer.rollback(name, wanted, context.home.repository, context.home.archive)
        descriptor = jobs.load_document(context.database, known[wanted].job_id, "descriptor")
        if descriptor is not None:
            again = known[wanted]
            _write_manifest(context, again.spec, again.model_sha256, ModelDescriptor.model_validate(descriptor))
        with context.database.write() as connection:
            _set_active(context, connection, name, wanted)
        return known[wanted].model_copy(update={"state": DeploymentState.ACTIVE})


def undeploy(context: Context, name: str) -> int:
    """Take a name out of the repository; its models stay in the store. Returns how many versions it had."""
    import deployer

    with _lock(context, name):
        known = everything(context, name)
        if not any(d.state is not DeploymentState.RETIRED for d in known):
            raise NotFound(f"There is no deployment {name!r}.", hint="`modelium deployments` lists them.")
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


def _lock(context: Context, name: str) -> AbstractContextManager[int]:
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
    from deployer import kserve

    document = kserve.manifest(
        spec,
        model_bytes=context.store.artifact(model_sha256).size_bytes,
        memory_bytes=descriptor.memory_bytes,
        storage_uri=f"{context.settings.storage_uri.rstrip('/')}/{spec.name}",
        namespace=context.settings.namespace,
        cpus=context.settings.threads,
    )
    path = context.home.manifests / f"{spec.name}.yaml"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(kserve.manifest_yaml(document, entry_name=spec.name))
    temporary.replace(path)
    return path
