"""Work: one claimed stage of one job, kept alive by a heartbeat, able to run steps."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from modelium import db, jobs, machine_lease, step_cache, step_memory, step_runs
from modelium.context import Context
from modelium.handover import Handover
from modelium.live_step import LiveStep
from modelium.store_lock import kept
from schemas import catalog
from schemas.descriptor import ModelDescriptor
from schemas.errors import Cancelled, ErrorDocument, StoreUnavailable
from schemas.step_io import LEASE_INPUT, StepRequest
from schemas.step_run import Limits, StepRun, StepRunState

if TYPE_CHECKING:
    from executor import StepOutput
    from executor.toolchain import Toolchain

log = logging.getLogger(__name__)
SEED = 20_240_229
"""Seeds every random input, so that a step run twice gives the same bytes."""


@dataclass(eq=False)
class Work:
    """One claimed stage. ``stopping`` is set when it is to be cancelled, its lease was lost or the process is to end.

    Steps may be run from several threads at once.
    """

    context: Context
    claim: jobs.Claim
    stopping: threading.Event = field(default_factory=threading.Event)
    lost: bool = False
    interrupted: bool = False

    def descriptor(self) -> ModelDescriptor:
        """Return the job's descriptor as the analysis left it."""
        return ModelDescriptor.model_validate(self.document("descriptor"))

    def document(self, kind: str) -> Any:
        """Return the JSON of one of the job's documents."""
        return jobs.load_document(self.context.database, self.claim.job.id, kind)

    def keep(self, kind: str, document: Any) -> None:
        """Keep a document in mid-stage, so that a person who looks sees it."""
        self.check()
        with self.context.database.write() as connection:
            jobs.store_document(connection, self.claim.job.id, self.claim.job.attempt, kind, document)

    def check(self) -> None:
        """Raise Cancelled, LeaseLost or Interrupted when this stage should stop."""
        if self.lost:
            raise jobs.LeaseLost(self.claim.job.id)
        if self.interrupted:
            raise jobs.Interrupted(self.claim.job.id)
        if self.stopping.is_set():
            raise Cancelled("Cancelled by a person.")

    def note(self, step: str, message: str) -> None:
        """Say what begins now to whoever follows."""
        step_runs.note_progress(self.context.database, self.claim.job.id, step, 0.0, message)

    def step(
        self,
        kind: str,
        inputs: Mapping[str, str],
        *,
        toolchain: str,
        options: Mapping[str, Any] | None = None,
        contender: str | None = None,
        descriptor: ModelDescriptor | None = None,
        exclusive: bool = False,
        reuse: bool = True,
        reusable: Callable[[StepRun], bool] = lambda run: True,
        machine: str = "",
        with_target: bool = False,
        limits: Limits | None = None,
        beside: Iterable[str] = (),
        then: Iterable[str] = (),
    ) -> StepRun:
        """Run one catalogued step in the sandbox, or reuse what it gave before; return its record.

        Args:
            inputs: Input name to the sha256 of a stored artifact.
            exclusive: Have the machine alone from when the step says that it is ready, as measuring must.
            reuse: Look in the cache first, and take what ``reusable`` says may be taken.
            machine: Part of the cache key, for results that hold on one machine only.
            with_target: Hand the target to the step; it then is part of the cache key.
            beside: Toolchains whose interpreters the step starts beside its own.
            then: Toolchains that the steps after this one are expected to need; got ready while it runs.

        A failing step is a record with state FAILED, not an exception. Raises Cancelled, LeaseLost, SandboxUnavailable
        and ToolchainMissing.
        """
        from executor.toolchain import versions

        self.check()
        context, job, settings = self.context, self.claim.job, self.context.settings
        typed = catalog.parse_options(kind, dict(options or {}))
        gpu = step_cache.gpu_of(kind, typed, descriptor.format if descriptor is not None else None)
        machine = machine or gpu
        budget = settings.memory_bytes or machine_lease.machine_budget_bytes()
        bounds = limits or settings.limits()
        bounds = bounds.model_copy(update={"memory_bytes": min(bounds.memory_bytes, budget)})
        if exclusive:  # it may wait inside its sandbox for those beside it, each of which has as long
            bounds = bounds.model_copy(update={"timeout_s": 2 * bounds.timeout_s})
        request = StepRequest(
            kind=kind,
            options=typed.model_dump(mode="json"),
            inputs={name: f"in/{name}" for name in inputs},
            artifact_sha256=job.artifact_sha256,
            seed=SEED,
            threads=settings.threads,
            memory_bytes=bounds.memory_bytes,
            descriptor=descriptor,
            sidecar=self.claim.sidecar,
            target=job.target if with_target else None,
        )
        tools = context.toolchain(toolchain)
        others = tuple(context.toolchain(name) for name in sorted(set(beside) - {toolchain}))
        known = versions(tools) | {f"{o.name}/{k}": v for o in others for k, v in versions(o).items()}
        trust = context.trust
        key = step_cache.cache_key(request, inputs, known, trust, machine)
        run = StepRun(
            id=uuid4().hex,
            job_id=job.id,
            attempt=job.attempt,
            contender=contender,
            kind=kind,
            toolchain=toolchain,
            options=request.options,
            state=StepRunState.RUNNING,
            cache_key=key,
            inputs=dict(inputs),
            limits=bounds,
            started_at=db.now(),
        )
        # One at a time for a key: of two equal drops the second waits here and then finds the first one's outputs.
        # Keys share 4096 lock files, so that a home's runtime folder does not grow.
        with machine_lease.locked(context.home.runtime / f"step-{key[:3]}.lock", should_stop=self.stopping.is_set):
            if reuse and (reused := self._reuse(key, run, reusable)) is not None:
                return reused
            isolation = context.sandbox.isolation(bounds)
            described = descriptor or (self.descriptor() if self.document("descriptor") else None)
            settings.require_isolation.check(isolation, kind, self.claim.sidecar, described)
            real = isolation.level
            if real != trust:  # what was remembered from an earlier process is not what is here now
                run = run.model_copy(update={"cache_key": step_cache.cache_key(request, inputs, known, real, machine)})
            for sha256 in inputs.values():
                context.store.path(sha256)  # what another machine made is fetched before a place here is taken
            sizes = [context.store.artifact(sha256).size_bytes for name, sha256 in inputs.items() if _is_model(name)]
            needed = step_memory.estimate(kind, toolchain, sizes, descriptor, beside)
            with machine_lease.hold(
                exclusive=False,
                at_once=settings.workers,
                memory_bytes=min(needed, bounds.memory_bytes),
                budget_bytes=budget,
                gpu=bool(gpu),
                should_stop=self.stopping.is_set,
            ) as lease:
                self.check()
                run = run.model_copy(update={"reserved_memory_bytes": lease.memory_bytes, "started_at": db.now()})
                step_runs.save(context.database, run)
                context.prepare(*then)
                if not exclusive:
                    return self._execute(request, run, tools, others, lease)
                with Handover(lease, context.home.workspaces, self.stopping.is_set) as handover:
                    return self._execute(request, run, tools, others, lease, handover)

    def _reuse(self, key: str, run: StepRun, reusable: Callable[[StepRun], bool]) -> StepRun | None:
        """Record and return ``run`` with the outputs of an earlier one, if its outputs are all stored still."""
        with kept(self.context.home):
            found = step_cache.find(self.context.database, key)
            if found is None or not all(self.context.store.renew(sha256) for sha256 in found.outputs.values()):
                return None
            if not reusable(found):
                return None
            own = {name: getattr(run, name) for name in ("id", "job_id", "attempt", "contender", "started_at")}
            first = {"cached_from": found.cached_from or found.id, "made_at": found.made_at or found.ended_at}
            run = found.model_copy(update={**own, **first, "reserved_memory_bytes": None, "ended_at": db.now()})
            step_runs.save(self.context.database, run)
        log.info("step %s reused", run.kind, extra={"job": run.job_id, "step": run.id})
        return run

    def _execute(
        self,
        request: StepRequest,
        run: StepRun,
        tools: Toolchain,
        others: tuple[Toolchain, ...],
        lease: machine_lease.Lease,
        handover: Handover | None = None,
    ) -> StepRun:
        import executor

        context, kind = self.context, run.kind
        self.note(kind, "starting")
        extra = {"job": run.job_id, "step": run.id}
        log.info("step %s started%s", kind, f" for {run.contender}" if run.contender else "", extra=extra)
        assert run.limits is not None
        inputs = {name: context.store.path(sha256) for name, sha256 in run.inputs.items()}
        if handover is not None:
            inputs[LEASE_INPUT] = handover.folder
        spec = executor.StepSpec(
            request=request,
            inputs=inputs,
            toolchain=tools,
            limits=run.limits,
            beside=others,
        )
        live = LiveStep(context.database, run)

        def should_stop() -> bool:
            live.tick()  # asked a few times a second: what was said last is shown though nothing follows it
            return self.stopping.is_set() or (handover is not None and handover.has_failed())

        def on_progress(fraction: float, message: str) -> None:
            live.progress(fraction, message)
            if handover is not None:
                handover.hear(message)

        ended: dict[str, Any] = {"state": StepRunState.CANCELLED}
        with contextlib.ExitStack() as until_recorded:
            try:
                with executor.run(
                    spec,
                    workspaces=context.home.workspaces,
                    sandbox=context.sandbox,
                    on_progress=on_progress,
                    on_log=live.add_log,
                    should_stop=should_stop,
                ) as output:
                    until_recorded.enter_context(kept(context.home))
                    ended = self._collect(output, lease)
            except StoreUnavailable as error:
                ended = {"state": StepRunState.FAILED, "error": error.document()}
                raise
            finally:
                if not self.lost:
                    run = run.model_copy(update={**ended, "ended_at": db.now()})
                    step_runs.save(context.database, run)
        log.info("step %s %s", kind, run.state.value, extra=extra)
        self.check()
        return run

    def _collect(self, output: StepOutput, lease: machine_lease.Lease) -> dict[str, Any]:
        result = output.result
        made = output.outputs if result.ok else {}
        # Nothing of a sandbox runs any more once it has ended; without one, something may still write.
        take = output.isolation.backend != "none"
        put = self.context.store.put
        # Hashing takes the machine's time, an upload hardly: the next step need not wait for it.
        stored = {name: put(path, take=take, before_upload=lease.give_back) for name, path in made.items()}
        with self.context.database.write() as connection:
            for artifact in stored.values():
                db.keep_artifact(connection, artifact)
        return {
            "state": StepRunState.SUCCEEDED if result.ok else StepRunState.FAILED,
            "outputs": {name: artifact.sha256 for name, artifact in stored.items()},
            "report": result.report,
            "error": result.error,
            "versions": result.versions,
            "isolation": output.isolation,
            "usage": output.usage,
            "log": output.log,
        }


def _is_model(name: str) -> bool:
    return name == "model" or name.startswith("candidate.")


def failure(run: StepRun) -> ErrorDocument:
    """Return why a run failed; never None for a run that did."""
    return run.error or ErrorDocument(code="internal", message=f"Step {run.kind} ended without saying why.")
