from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import func, select

from modelium import arrivals, db, jobs, outbox
from modelium.db import Database
from schemas.errors import Conflict, ErrorDocument, NotFound
from schemas.job import ENDS, JobState

Arrive = Callable[..., arrivals.Arrived]


def state_of(database: Database, job_id: str) -> JobState:
    return jobs.find(database, job_id).state


def waiting(database: Database) -> list[tuple[str, str]]:
    sent: list[tuple[str, str]] = []
    outbox.relay(database, lambda job_id, stage: sent.append((job_id, stage)))
    return sent


def count(database: Database, table: db.Table) -> int:
    with database.read() as connection:
        return int(connection.execute(select(func.count()).select_from(table)).scalar_one())


def test_an_arrival_writes_event_artifact_job_and_outbox_row_at_once(database: Database, arrive: Arrive) -> None:
    arrived = arrive()
    assert arrived.new
    assert [count(database, t) for t in (db.events, db.artifacts, db.jobs, db.outbox)] == [1, 1, 1, 1]
    assert waiting(database) == [(arrived.job_id, "analyze")]


def test_the_same_drop_twice_is_one_job(database: Database, arrive: Arrive) -> None:
    first, second = arrive(), arrive()
    assert (first.job_id, second.new) == (second.job_id, False)
    assert [count(database, t) for t in (db.events, db.jobs, db.outbox)] == [1, 1, 1]


def test_the_same_bytes_under_two_names_are_two_jobs(database: Database, arrive: Arrive) -> None:
    assert arrive("file:///in/a.pt").job_id != arrive("file:///in/b.pt").job_id
    assert count(database, db.artifacts) == 1


def test_equal_drops_recorded_at_once_by_many_make_one_job(database: Database, arrive: Arrive) -> None:
    with ThreadPoolExecutor(8) as pool:
        arrived = list(pool.map(lambda _: arrive(), range(16)))
    assert len({a.job_id for a in arrived}) == 1
    assert sum(a.new for a in arrived) == 1


def test_a_drop_with_a_bad_sidecar_ends_with_the_reason(database: Database, arrive: Arrive) -> None:
    error = ErrorDocument(code="invalid_document", message="The sidecar is not valid.")
    arrived = arrive(error=error)
    job = jobs.find(database, arrived.job_id)
    assert (job.state, job.reason) == (JobState.NEEDS_INPUT, "The sidecar is not valid.")
    assert waiting(database) == []
    with pytest.raises(Conflict, match="refused as it arrived"):
        jobs.retry(database, arrived.job_id)


def test_only_one_of_many_workers_gets_a_claim(database: Database, arrive: Arrive) -> None:
    job_id = arrive().job_id
    with ThreadPoolExecutor(8) as pool:
        claims = list(pool.map(lambda n: jobs.claim(database, job_id, "analyze", f"w{n}", 60), range(16)))
    assert len([c for c in claims if c is not None]) == 1
    assert state_of(database, job_id) is JobState.ANALYZING


def test_a_stage_is_claimed_only_in_its_own_state(database: Database, arrive: Arrive) -> None:
    job_id = arrive().job_id
    assert jobs.claim(database, job_id, "execute", "w", 60) is None
    assert jobs.claim(database, "no such job", "analyze", "w", 60) is None


def test_finishing_a_stage_sends_the_next_one(database: Database, arrive: Arrive) -> None:
    job_id = arrive().job_id
    waiting(database)
    claimed = jobs.claim(database, job_id, "analyze", "w", 60)
    assert claimed is not None
    jobs.finish(database, claimed, JobState.PLANNING, keep={"descriptor": {"format": "onnx"}})
    assert waiting(database) == [(job_id, "plan")]
    assert jobs.load_document(database, job_id, "descriptor") == {"format": "onnx"}
    assert [t.after for t in jobs.history(database, job_id)] == ["received", "analyzing", "planning"]


def test_a_worker_that_lost_its_lease_writes_nothing(database: Database, arrive: Arrive) -> None:
    job_id = arrive().job_id
    slow = jobs.claim(database, job_id, "analyze", "slow", 0.01)
    time.sleep(0.05)
    quick = jobs.claim(database, job_id, "analyze", "quick", 60)
    assert slow is not None and quick is not None and quick.deliveries == 2
    with pytest.raises(jobs.LeaseLost):
        jobs.finish(database, slow, JobState.FAILED, reason="late")
    with pytest.raises(jobs.LeaseLost):
        jobs.heartbeat(database, job_id, "slow", 60)
    jobs.finish(database, quick, JobState.PLANNING)
    assert state_of(database, job_id) is JobState.PLANNING


def test_the_reaper_sends_on_what_a_dead_worker_held(database: Database, arrive: Arrive) -> None:
    job_id = arrive().job_id
    waiting(database)
    jobs.claim(database, job_id, "analyze", "dead", 0.01)
    time.sleep(0.05)
    assert jobs.reap(database, republish_after_s=3600) == 1
    assert waiting(database) == [(job_id, "analyze")]
    assert jobs.reap(database, republish_after_s=3600) == 0


def test_the_reaper_leaves_a_live_worker_alone(database: Database, arrive: Arrive) -> None:
    job_id = arrive().job_id
    waiting(database)
    jobs.claim(database, job_id, "analyze", "alive", 60)
    assert jobs.reap(database, republish_after_s=0, all_waiting=True) == 0


def test_a_message_the_broker_lost_is_sent_again(database: Database, arrive: Arrive) -> None:
    job_id = arrive().job_id
    waiting(database)
    assert jobs.reap(database, republish_after_s=3600) == 0
    assert jobs.reap(database, republish_after_s=-1) == 1
    assert waiting(database) == [(job_id, "analyze")]


def test_a_row_whose_sending_failed_stays_in_the_outbox(database: Database, arrive: Arrive) -> None:
    job_id = arrive().job_id

    def away(*_: str) -> None:
        raise OSError("the broker is away")

    with pytest.raises(OSError, match="away"):
        outbox.relay(database, away)
    assert waiting(database) == [(job_id, "analyze")]


def test_cancelling_a_waiting_job_ends_it_at_once(database: Database, arrive: Arrive) -> None:
    job_id = arrive().job_id
    assert jobs.cancel(database, job_id) is JobState.CANCELLED
    assert jobs.claim(database, job_id, "analyze", "w", 60) is None
    with pytest.raises(Conflict, match="ended already"):
        jobs.cancel(database, job_id)


def test_cancelling_a_held_job_reaches_its_heartbeat(database: Database, arrive: Arrive) -> None:
    job_id = arrive().job_id
    claimed = jobs.claim(database, job_id, "analyze", "w", 60)
    assert claimed is not None
    assert jobs.heartbeat(database, job_id, "w", 60) is False
    assert jobs.cancel(database, job_id) is JobState.ANALYZING
    assert jobs.heartbeat(database, job_id, "w", 60) is True
    jobs.finish(database, claimed, JobState.CANCELLED, reason="Cancelled by a person.")


def test_a_cancelled_job_whose_worker_died_is_ended_by_the_reaper(database: Database, arrive: Arrive) -> None:
    job_id = arrive().job_id
    jobs.claim(database, job_id, "analyze", "w", 0.2)
    jobs.cancel(database, job_id)
    time.sleep(0.25)
    jobs.reap(database, republish_after_s=3600)
    assert state_of(database, job_id) is JobState.CANCELLED


def test_a_retry_is_a_new_attempt_at_the_same_job(database: Database, arrive: Arrive) -> None:
    job_id = arrive().job_id
    with pytest.raises(Conflict, match="still received"):
        jobs.retry(database, job_id)
    jobs.cancel(database, job_id)
    waiting(database)
    assert jobs.retry(database, job_id) == 2
    job = jobs.find(database, job_id)
    assert (job.state, job.attempt, job.reason) == (JobState.RECEIVED, 2, None)
    assert waiting(database) == [(job_id, "analyze")]


def test_a_released_claim_does_not_count_as_a_death(database: Database, arrive: Arrive) -> None:
    job_id = arrive().job_id
    claimed = jobs.claim(database, job_id, "analyze", "w", 60)
    assert claimed is not None
    jobs.release(database, claimed)
    again = jobs.claim(database, job_id, "analyze", "w2", 60)
    assert again is not None and again.deliveries == 1


def test_stopping_a_worker_frees_its_jobs_at_once_and_is_no_death(database: Database, arrive: Arrive) -> None:
    job_id = arrive().job_id
    jobs.claim(database, job_id, "analyze", "host-12-abc", 60)
    assert jobs.forgive(database, "host-1-") == 0
    assert jobs.forgive(database, "host-12-") == 1
    again = jobs.claim(database, job_id, "analyze", "host-13-abc", 60)
    assert again is not None and again.deliveries == 1


def test_a_name_belongs_to_the_first_uri_that_claims_it(database: Database) -> None:
    assert jobs.claim_name(database, "a", "file:///in/a.pt") is None
    assert jobs.claim_name(database, "a", "file:///in/a.pt") is None
    assert jobs.claim_name(database, "a", "file:///in/other.pt") == "file:///in/a.pt"


def test_a_job_is_found_by_the_beginning_of_its_id(database: Database, arrive: Arrive) -> None:
    job_id = arrive().job_id
    assert jobs.find(database, job_id[:8]).id == job_id
    assert jobs.find(database, "a").id == job_id or job_id.startswith("a")
    with pytest.raises(NotFound, match="There is no job 'zzz'"):
        jobs.find(database, "zzz")
    with pytest.raises(NotFound):
        jobs.find(database, "%")


def test_documents_of_a_job_are_the_latest(database: Database, arrive: Arrive) -> None:
    job_id = arrive().job_id
    for value in (1, 2):
        with database.write() as connection:
            jobs.store_document(connection, job_id, 1, "plan", {"value": value})
    assert jobs.load_document(database, job_id, "plan") == {"value": 2}


def test_published_outbox_rows_are_forgotten_in_time(
    database: Database, arrive: Arrive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "KEEP_PUBLISHED", 1)
    arrive("file:///in/a.pt")
    arrive("file:///in/b.pt")
    waiting(database)
    outbox.prune(database)
    assert count(database, db.outbox) == 1


def test_the_migrations_and_the_tables_agree(database: Database) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with database.read() as connection:
        migrated = MigrationContext.configure(connection)
        assert migrated.get_current_revision() == db.HEAD
        assert compare_metadata(migrated, db.metadata) == []


def test_every_end_has_a_way_back() -> None:
    from schemas.job import is_legal

    assert all(is_legal(end, JobState.RECEIVED) for end in ENDS)
