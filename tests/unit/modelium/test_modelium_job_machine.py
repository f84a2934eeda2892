"""Whatever workers, people and crashes do in whatever order, a job's history is legal and it has one state."""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from sqlalchemy import update

from modelium import arrivals, db, jobs
from modelium.db import Database
from modelium.jobs import Claim, LeaseLost
from schemas.artifact import Artifact, ArtifactKind
from schemas.errors import Conflict
from schemas.event import Event
from schemas.job import ENDS, LEGAL_CHANGES, JobState, is_legal
from schemas.target import TargetProfile


class JobMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.database = Database(f"sqlite:///{Path(self.folder.name) / 'jobs.db'}")
        self.database.migrate()
        event = Event(
            id="e", source="folder", uri="file:///a", size_bytes=1, etag="1", idempotency_key="k", arrived_at=db.now()
        )
        artifact = Artifact(sha256="0" * 64, kind=ArtifactKind.FILE, size_bytes=1)
        self.job_id = arrivals.record(self.database, event, artifact, label="a", target=TargetProfile()).job_id
        self.claims: list[Claim] = []

    def state(self) -> JobState:
        return jobs.find(self.database, self.job_id).state

    @rule(stage=st.sampled_from(jobs.STAGES))
    def somebody_claims(self, stage: str) -> None:
        claimed = jobs.claim(self.database, self.job_id, stage, f"worker-{len(self.claims)}", 1000)
        if claimed is not None:
            self.claims.append(claimed)

    @rule(index=st.integers(0, 20), after=st.sampled_from(list(JobState)))
    def a_holder_finishes_or_finds_its_lease_lost(self, index: int, after: JobState) -> None:
        if not self.claims:
            return
        claimed = self.claims[index % len(self.claims)]
        if not is_legal(jobs.STATE_OF_STAGE[claimed.stage], after):
            return
        holder = self.claims[-1] is claimed
        try:
            jobs.finish(self.database, claimed, after)
            assert holder, "only the newest claim may write"
        except LeaseLost:
            pass

    @rule()
    def the_holder_dies(self) -> None:
        with self.database.write() as connection:
            connection.execute(update(db.jobs).where(db.jobs.c.lease_until.is_not(None)).values(lease_until=1.0))

    @rule()
    def the_reaper_comes(self) -> None:
        jobs.reap(self.database, republish_after_s=0, all_waiting=True)

    @rule()
    def a_person_cancels(self) -> None:
        try:
            jobs.cancel(self.database, self.job_id)
        except Conflict:
            assert self.state() in ENDS

    @rule()
    def a_person_retries(self) -> None:
        try:
            jobs.retry(self.database, self.job_id)
        except Conflict:
            assert self.state() not in ENDS

    @invariant()
    def the_history_is_legal_and_ends_where_the_job_is(self) -> None:
        history = jobs.history(self.database, self.job_id)
        assert history[-1].after == self.state()
        for earlier, later in pairwise(history):
            assert later.before == earlier.after
            assert later.before is not None and later.after in LEGAL_CHANGES[later.before]

    def teardown(self) -> None:
        self.folder.cleanup()


JobMachine.TestCase.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestJobMachine = JobMachine.TestCase
