"""Leases: renewed by a beat, even a late one, and gone for good once removed."""

from __future__ import annotations

from uuid import UUID

from store.attempts import finish
from store.claiming import claim_any, claim_ticket
from store.jobs import request_cancel
from store.leases import (
    LEASE_S,
    HeldJob,
    beat,
    disown,
    expire_process,
    give_up,
    held_jobs,
    list_live,
    live_workers,
    refusals_of,
)
from store.pools import DictConnection
from store.reaping import reap_lost
from tasks.ids import uuid7
from tests.integration.store.conftest import AsApi
from tests.integration.store.writes import claim, expire, finish_of, lease
from tests.support.jobs import Jobs
from tests.support.poison import refuse


def _live(connection: DictConnection) -> set[UUID]:
    return {row["worker_id"] for row in list_live(connection)}


def test_a_late_beat_renews_a_lease_that_ran_out(
    jobs: Jobs, connection: DictConnection, worker_id: UUID
) -> None:
    expire(jobs, worker_id)

    is_alive = beat(connection, worker_id, num_running=3)

    assert is_alive
    row = list_live(connection)[0]
    assert (row["worker_id"], row["num_running"]) == (worker_id, 3)
    assert (row["expires_at"] - row["beat_at"]).total_seconds() == LEASE_S


def test_a_lease_given_up_can_not_beat(connection: DictConnection, worker_id: UUID) -> None:
    give_up(connection, worker_id)

    is_alive = beat(connection, worker_id, num_running=0)

    assert not is_alive
    assert _live(connection) == set()


def test_an_unknown_worker_can_not_beat(connection: DictConnection, worker_id: UUID) -> None:
    is_alive = beat(connection, uuid7(), num_running=0)

    assert not is_alive
    assert _live(connection) == {worker_id}


def test_only_live_leases_are_listed_with_the_age_of_their_beat(
    jobs: Jobs, connection: DictConnection, worker_id: UUID
) -> None:
    expire(jobs, lease(connection))

    rows = list_live(connection)

    assert [row["worker_id"] for row in rows] == [worker_id]
    assert 0 <= rows[0]["beat_age_s"] < LEASE_S
    assert (rows[0]["models"], rows[0]["slots"]) == (["stub"], 4)


def test_the_leases_of_a_dead_process_end_at_once(connection: DictConnection) -> None:
    lease(connection, hostname="a", pid=7)
    same_pid = lease(connection, hostname="b", pid=7)
    same_host = lease(connection, hostname="a", pid=8)

    num_ended = expire_process(connection, hostname="a", pid=7)

    assert num_ended == 1
    assert _live(connection) == {same_pid, same_host}


def test_a_process_is_ended_once(connection: DictConnection) -> None:
    lease(connection, hostname="a", pid=7)
    expire_process(connection, hostname="a", pid=7)

    num_ended = expire_process(connection, hostname="a", pid=7)

    assert num_ended == 0


def test_held_jobs_are_those_running_under_the_lease(
    jobs: Jobs, as_api: AsApi, connection: DictConnection, worker_id: UUID
) -> None:
    running = claim(connection, worker_id, jobs.add())
    cancelled = claim(connection, worker_id, jobs.add())
    as_api(lambda pool: request_cancel(pool, jobs.tenant_id, cancelled.job_id))
    ended = claim(connection, worker_id, jobs.add())
    finish(connection, finish_of(ended, worker_id))
    claim(connection, lease(connection), jobs.add())

    held = held_jobs(connection, worker_id)

    assert set(held) == {HeldJob(running.job_id, 1, False), HeldJob(cancelled.job_id, 1, True)}


def test_a_disowned_job_is_left_to_the_reaper_while_its_worker_lives(
    jobs: Jobs, connection: DictConnection, worker_id: UUID
) -> None:
    claimed = claim(connection, worker_id, jobs.add())
    kept = claim(connection, worker_id, jobs.add())

    is_disowned = disown(connection, worker_id, HeldJob(claimed.job_id, claimed.attempt, False))

    assert is_disowned
    assert [item.job_id for item in held_jobs(connection, worker_id)] == [kept.job_id]
    assert [item.job_id for item in reap_lost(connection)] == [claimed.job_id]


def test_a_job_of_another_attempt_or_worker_is_not_disowned(
    jobs: Jobs, connection: DictConnection, worker_id: UUID
) -> None:
    claimed = claim(connection, worker_id, jobs.add())
    held, old = HeldJob(claimed.job_id, 1, False), HeldJob(claimed.job_id, 0, False)

    answers = [disown(connection, worker_id, old), disown(connection, lease(connection), held)]

    assert answers == [False, False]
    assert held_jobs(connection, worker_id) == [held]


def test_a_lease_given_up_gives_back_its_own_jobs_without_a_failure(
    jobs: Jobs, connection: DictConnection, worker_id: UUID
) -> None:
    held, other = lease(connection), worker_id
    given_back = claim(connection, held, jobs.add())
    kept = claim(connection, other, jobs.add())
    ended = claim(connection, held, jobs.add())
    finish(connection, finish_of(ended, held))

    job_ids = give_up(connection, held)

    assert job_ids == [given_back.job_id]
    row = jobs.row(given_back.job_id)
    assert (row["status"], row["worker_id"], row["fail_count"]) == ("queued", None, 0)
    assert jobs.row(kept.job_id)["worker_id"] == other
    assert jobs.row(ended.job_id)["finished_at"] is not None
    assert reap_lost(connection) == []


def test_a_job_that_can_not_be_given_back_keeps_no_other_from_it(
    jobs: Jobs, connection: DictConnection, worker_id: UUID
) -> None:
    stuck, *others = (claim(connection, worker_id, jobs.add()).job_id for _ in range(3))
    with jobs.connect() as owner:
        refuse(owner, "jobs", "id", stuck)

    job_ids = give_up(connection, worker_id)

    assert sorted(job_ids) == sorted(others)
    assert [jobs.row(job)["status"] for job in (stuck, *others)] == [
        "in_progress",
        "queued",
        "queued",
    ]
    assert _live(connection) == set()


def test_readiness_sees_a_live_worker(as_api: AsApi, worker_id: UUID) -> None:
    workers = as_api(live_workers)

    assert [worker["models"] for worker in workers] == [["stub"]]


def test_readiness_does_not_count_a_worker_whose_lease_ran_out(
    jobs: Jobs, as_api: AsApi, worker_id: UUID
) -> None:
    expire(jobs, worker_id)

    assert as_api(live_workers) == []


def test_a_model_is_refused_while_no_worker_of_its_pool_serves_it(
    connection: DictConnection, as_api: AsApi
) -> None:
    lease(connection, models=["other"], refused={"stub": "it is noise"})
    alone = refusals_of(as_api(live_workers))
    lease(connection)

    assert alone == {"stub": "it is noise"}
    assert refusals_of(as_api(live_workers)) == {}


def test_a_worker_claims_no_job_of_a_model_that_it_refused(
    jobs: Jobs, connection: DictConnection
) -> None:
    job = jobs.add()
    refusing = lease(connection, models=["other"], refused={"stub": "it is noise"})

    found = [claim_ticket(connection, refusing, job), claim_any(connection, refusing, "default")]

    assert found == [None, None]
    assert claim_ticket(connection, lease(connection), job) is not None
