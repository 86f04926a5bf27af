"""Claiming: one worker a job, the right job for a ticket, nothing without a live lease."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Barrier
from uuid import UUID

import pytest

from store.attempts import Claimed
from store.claiming import claim_any, claim_ticket
from store.leases import set_draining
from store.pools import DictConnection, connect
from tasks.ids import uuid7, uuid7_floor
from tasks.queues import ServiceTier
from tasks.token_ids import unpack_token_ids
from tests.integration.store.writes import another_tenant, claim, expire, lease
from tests.support.jobs import Jobs

NUM_JOBS = 30
NUM_WORKERS = 4

ClaimMany = Callable[[DictConnection, UUID, Sequence[UUID]], list[UUID]]


def _by_tickets(connection: DictConnection, worker_id: UUID, job_ids: Sequence[UUID]) -> list[UUID]:
    claims = [claim_ticket(connection, worker_id, job_id) for job_id in job_ids]
    return [claimed.job_id for claimed in claims if claimed]


def _by_looking(connection: DictConnection, worker_id: UUID, job_ids: Sequence[UUID]) -> list[UUID]:
    claims = [claim_any(connection, worker_id, "default") for _ in job_ids]
    return [claimed.job_id for claimed in claims if claimed]


@pytest.mark.parametrize("claim_many", [_by_tickets, _by_looking])
def test_racing_workers_claim_each_job_once(jobs: Jobs, claim_many: ClaimMany) -> None:
    job_ids = [jobs.add() for _ in range(NUM_JOBS)]
    together = Barrier(NUM_WORKERS)

    def race(_: int) -> list[UUID]:
        with connect(jobs.urls.worker, application_name="test-worker") as connection:
            worker_id = lease(connection)
            together.wait(timeout=10)
            return claim_many(connection, worker_id, job_ids)

    with ThreadPoolExecutor(NUM_WORKERS) as threads:
        claimed = [job_id for mine in threads.map(race, range(NUM_WORKERS)) for job_id in mine]

    assert sorted(claimed) == sorted(job_ids)
    attempts = jobs.query("SELECT job_id, attempt FROM job_attempts ORDER BY job_id")
    assert [(row["job_id"], row["attempt"]) for row in attempts] == [(id_, 1) for id_ in job_ids]


@pytest.mark.parametrize(
    "change",
    [
        "cancel_requested_at = now(), cancel_by = 'user'",
        "run_after = now() + interval '1 minute'",
        "deadline_at = now() - interval '1 s'",
        "status = 'in_progress', worker_id = gen_random_uuid()",
        "status = 'cancelled', finished_at = now()",
    ],
)
def test_a_job_that_may_not_run_is_not_claimed(
    jobs: Jobs, connection: DictConnection, worker_id: UUID, change: str
) -> None:
    job_id = jobs.add()
    with jobs.connect() as owner:
        owner.execute(f"UPDATE jobs SET {change}".encode())

    claims: list[Claimed | None] = [
        claim_ticket(connection, worker_id, job_id),
        claim_any(connection, worker_id, "default"),
    ]

    assert claims == [None, None]
    assert jobs.row(job_id)["attempt"] == 0


@pytest.mark.parametrize("claim_many", [_by_tickets, _by_looking])
def test_a_job_that_has_waited_for_as_long_as_a_batch_may_is_claimed(
    jobs: Jobs, connection: DictConnection, worker_id: UUID, claim_many: ClaimMany
) -> None:
    week_ago = datetime.now(UTC) - timedelta(days=7)
    job_id = jobs.add(id=uuid7_floor(int(week_ago.timestamp() * 1000)))

    claimed = claim_many(connection, worker_id, [job_id])

    assert claimed == [job_id]


def test_a_ticket_claims_its_own_tenants_job_before_an_older_one(
    jobs: Jobs, connection: DictConnection, worker_id: UUID
) -> None:
    jobs.add(tenant_id=another_tenant(jobs), lane=jobs.lane)
    ours = jobs.add()

    claim(connection, worker_id, ours)


def test_a_surplus_ticket_claims_the_oldest_job_of_its_lane(
    jobs: Jobs, connection: DictConnection, worker_id: UUID
) -> None:
    ours = jobs.add()
    claim(connection, worker_id, ours)
    oldest = jobs.add(tenant_id=another_tenant(jobs), lane=jobs.lane)
    newer = jobs.add(tenant_id=another_tenant(jobs, name="third"), lane=jobs.lane, deadline_s=60.0)

    claims = [claim_ticket(connection, worker_id, ours) for _ in range(3)]

    assert [claimed.job_id if claimed else None for claimed in claims] == [oldest, newer, None]


def test_a_ticket_stays_in_its_lane(
    jobs: Jobs, connection: DictConnection, worker_id: UUID
) -> None:
    here = jobs.add()
    another = another_tenant(jobs)
    others = [jobs.add(tenant_id=another, lane=lane) for lane in (jobs.lane - 1, jobs.lane + 1)]
    claim(connection, worker_id, here)

    surplus = claim_ticket(connection, worker_id, here)

    assert surplus is None
    assert [jobs.row(other)["status"] for other in others] == ["queued", "queued"]


@pytest.mark.parametrize("field", [{"service_tier": ServiceTier.FLEX}, {"pool": "large"}])
def test_a_ticket_stays_in_its_tier_and_pool(
    jobs: Jobs, connection: DictConnection, worker_id: UUID, field: dict[str, object]
) -> None:
    elsewhere = jobs.add(**field)
    here = jobs.add()
    claim(connection, worker_id, here)

    surplus = claim_ticket(connection, worker_id, here)

    assert surplus is None
    assert jobs.row(elsewhere)["status"] == "queued"


def test_a_ticket_claims_the_job_with_the_first_deadline(
    jobs: Jobs, connection: DictConnection, worker_id: UUID
) -> None:
    named = jobs.add(deadline_s=600.0)
    urgent = jobs.add(deadline_s=60.0)

    claims = [claim_ticket(connection, worker_id, named) for _ in range(2)]

    assert [claimed.job_id for claimed in claims if claimed] == [urgent, named]


def test_a_ticket_for_an_unknown_job_claims_nothing(
    jobs: Jobs, connection: DictConnection, worker_id: UUID
) -> None:
    jobs.add()

    claimed = claim_ticket(connection, worker_id, uuid7())

    assert claimed is None


def test_looking_takes_tiers_in_order_and_the_oldest_first(
    jobs: Jobs, connection: DictConnection, worker_id: UUID
) -> None:
    tiers = [ServiceTier.BATCH, ServiceTier.FLEX, ServiceTier.DEFAULT, ServiceTier.PRIORITY]
    added = {tier: [jobs.add(service_tier=tier) for _ in range(2)] for tier in tiers}

    claims = [claim_any(connection, worker_id, "default") for _ in range(9)]

    expected = [job_id for tier in reversed(tiers) for job_id in added[tier]]
    assert [claimed.job_id if claimed else None for claimed in claims] == [*expected, None]


def test_looking_stays_in_its_pool(jobs: Jobs, connection: DictConnection, worker_id: UUID) -> None:
    jobs.add(pool="large")

    claimed = claim_any(connection, worker_id, "default")

    assert claimed is None


def test_a_claim_hands_over_all_it_takes_to_run(
    jobs: Jobs, connection: DictConnection, worker_id: UUID
) -> None:
    new = jobs.new(prompt=(4, 5, 6), max_output_tokens=9, deadline_s=60.0)
    jobs.admit(new)

    claimed = claim(connection, worker_id, new.id)

    assert (claimed.tenant_id, claimed.attempt, claimed.model) == (jobs.tenant_id, 1, "stub")
    assert unpack_token_ids(claimed.prompt_token_ids) == [4, 5, 6]
    assert (claimed.sampling, claimed.max_output_tokens) == (new.sampling, 9)
    assert claimed.prices == new.prices
    assert 0 < claimed.remaining_s <= 60
    row = jobs.row(new.id)
    assert (row["status"], row["worker_id"]) == ("in_progress", worker_id)
    assert row["started_at"] is not None


def _unknown(jobs: Jobs, connection: DictConnection) -> UUID:
    return uuid7()


def _expired(jobs: Jobs, connection: DictConnection) -> UUID:
    worker_id = lease(connection)
    expire(jobs, worker_id)
    return worker_id


def _draining(jobs: Jobs, connection: DictConnection) -> UUID:
    worker_id = lease(connection)
    set_draining(connection, worker_id)
    return worker_id


@pytest.mark.parametrize("worker", [_unknown, _expired, _draining])
def test_a_worker_without_a_live_lease_claims_nothing(
    jobs: Jobs, connection: DictConnection, worker: Callable[[Jobs, DictConnection], UUID]
) -> None:
    job_id = jobs.add()
    worker_id = worker(jobs, connection)

    claims: list[Claimed | None] = [
        claim_ticket(connection, worker_id, job_id),
        claim_any(connection, worker_id, "default"),
    ]

    assert claims == [None, None]
    row = jobs.row(job_id)
    assert (row["status"], row["attempt"]) == ("queued", 0)
