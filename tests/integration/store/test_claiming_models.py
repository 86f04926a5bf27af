"""Claiming by workers of several models, or of others than those that are waited for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from uuid import UUID

import pytest

from store.claiming import claim_any, claim_ticket
from store.pools import DictConnection, connect
from tasks.queues import ServiceTier
from tests.integration.store.writes import another_tenant, claim, lease
from tests.support.jobs import Jobs

NUM_JOBS = 30
NUM_WORKERS = 4
MODELS = ("a", "b", "c")

_COPY = """
INSERT INTO jobs SELECT (jsonb_populate_record(j, jsonb_build_object('id', uuidv7()))).*
FROM jobs j, generate_series(1, %s) WHERE id = %s
"""

# By a ticket for the named job, or without one.
Claim = Callable[[DictConnection, UUID, UUID], UUID | None]


def _by_ticket(connection: DictConnection, worker_id: UUID, job_id: UUID) -> UUID | None:
    claimed = claim_ticket(connection, worker_id, job_id)
    return claimed.job_id if claimed else None


def _by_looking(connection: DictConnection, worker_id: UUID, _job_id: UUID) -> UUID | None:
    claimed = claim_any(connection, worker_id, "default")
    return claimed.job_id if claimed else None


@pytest.fixture
def of_all(connection: DictConnection) -> UUID:
    """A worker that has all models loaded."""
    return lease(connection, models=MODELS)


@pytest.fixture
def another(jobs: Jobs) -> Iterator[DictConnection]:
    """Of a second worker process."""
    with connect(jobs.urls.worker, application_name="test-worker") as opened:
        yield opened


@pytest.fixture(params=[0, 20], ids=["", "behind a backlog"])
def backlog(jobs: Jobs, request: pytest.FixtureRequest) -> int:
    """Older jobs of a model that no worker of these tests has: more than a look sees at once."""
    if request.param:
        job_id = jobs.add(model="backlog")
        with jobs.connect() as owner:
            owner.execute(_COPY, (request.param - 1, job_id))
    return int(request.param)


@pytest.fixture
def spent(jobs: Jobs, connection: DictConnection) -> UUID:
    """A ticket whose tenant has nothing left: a surplus one."""
    job_id = jobs.add(model="a")
    claim(connection, lease(connection, models=["a"]), job_id)
    return job_id


def test_a_ticket_claims_by_deadline_whatever_the_model(
    jobs: Jobs, connection: DictConnection, of_all: UUID
) -> None:
    third = jobs.add(model="a", deadline_s=600.0)
    first = jobs.add(model="c", deadline_s=60.0)
    fourth = jobs.add(model="c", deadline_s=900.0)
    second = jobs.add(model="b", deadline_s=300.0)

    claimed = [_by_ticket(connection, of_all, third) for _ in range(5)]

    assert claimed == [first, second, third, fourth, None]


def test_a_surplus_ticket_claims_the_oldest_whatever_the_model(
    jobs: Jobs, connection: DictConnection, of_all: UUID, spent: UUID
) -> None:
    tenant = another_tenant(jobs)
    added = [jobs.add(tenant_id=tenant, lane=jobs.lane, model=model) for model in "cabc"]

    claimed = [_by_ticket(connection, of_all, spent) for _ in range(5)]

    assert claimed == [*added, None]


def test_looking_takes_tiers_in_order_and_the_oldest_first_whatever_model_and_lane(
    jobs: Jobs, connection: DictConnection, of_all: UUID, backlog: int
) -> None:
    kinds = [("c", 9), ("a", 12), ("b", 3), ("c", 3), ("a", 9)]
    tiers = [ServiceTier.FLEX, ServiceTier.BATCH, ServiceTier.PRIORITY, ServiceTier.DEFAULT]
    added = {
        tier: [jobs.add(service_tier=tier, model=model, lane=lane) for model, lane in kinds]
        for tier in tiers
    }

    claimed = [_by_looking(connection, of_all, jobs.tenant_id) for _ in range(21)]

    assert claimed == [job_id for tier in ServiceTier for job_id in added[tier]] + [None]


def test_looking_passes_over_the_first_of_a_lane_that_may_not_run(
    jobs: Jobs, connection: DictConnection, of_all: UUID, backlog: int
) -> None:
    waits = jobs.add(model="a", lane=1)
    first = jobs.add(model="a", lane=2)
    second = jobs.add(model="a", lane=1)
    with jobs.connect() as owner:
        owner.execute(
            "UPDATE jobs SET run_after = now() + interval '1 minute' WHERE id = %s", (waits,)
        )

    claimed = [_by_looking(connection, of_all, first) for _ in range(3)]

    assert claimed == [first, second, None]


@pytest.mark.parametrize("look", [_by_ticket, _by_looking])
@pytest.mark.parametrize("refused", [{"backlog": "it is noise"}, {}])
def test_a_job_behind_those_of_a_model_that_is_not_served_is_claimed(
    jobs: Jobs, connection: DictConnection, backlog: int, look: Claim, refused: dict[str, str]
) -> None:
    behind = jobs.add(model="b", deadline_s=900.0)
    worker_id = lease(connection, models=["b"], refused=refused)

    claimed = [look(connection, worker_id, behind) for _ in range(2)]

    assert claimed == [behind, None]


def test_a_surplus_ticket_claims_a_job_behind_those_of_a_refused_model(
    jobs: Jobs, connection: DictConnection, spent: UUID
) -> None:
    tenant = another_tenant(jobs)
    for _ in range(3):
        jobs.add(tenant_id=tenant, lane=jobs.lane, model="a")
    behind = jobs.add(tenant_id=tenant, lane=jobs.lane, model="b")
    worker_id = lease(connection, models=["b"], refused={"a": "it is noise"})

    claimed = [_by_ticket(connection, worker_id, spent) for _ in range(2)]

    assert claimed == [behind, None]


@pytest.mark.parametrize("look", [_by_ticket, _by_looking])
def test_a_model_is_not_served_once_it_is_refused_whatever_else_the_lease_says(
    jobs: Jobs, connection: DictConnection, look: Claim
) -> None:
    refused = jobs.add(model="a")
    worker_id = lease(connection, models=["a"], refused={"a": "it is noise"})

    assert look(connection, worker_id, refused) is None


def test_a_job_of_a_model_that_no_worker_has_is_claimed_by_its_ticket_alone(
    jobs: Jobs, connection: DictConnection
) -> None:
    retired = jobs.add(model="retired")
    worker_id = lease(connection, models=["a"])
    of_others = jobs.add(model="a", tenant_id=another_tenant(jobs), lane=jobs.lane)
    claim(connection, worker_id, of_others)

    claimed = [
        look(connection, worker_id, ticket)
        for look, ticket in [
            (_by_looking, of_others),
            (_by_ticket, of_others),
            (_by_ticket, retired),
        ]
    ]

    assert claimed == [None, None, retired]


def test_a_job_whose_model_another_worker_has_is_left_to_it(
    jobs: Jobs, connection: DictConnection, of_all: UUID
) -> None:
    job_id = jobs.add(model="b")
    without = lease(connection, models=["a"])

    claimed = [look(connection, without, job_id) for look in (_by_ticket, _by_looking)]

    assert claimed == [None, None]
    assert _by_ticket(connection, of_all, job_id) == job_id


@pytest.mark.usefixtures("backlog")
@pytest.mark.parametrize("look", [_by_ticket, _by_looking])
def test_a_claim_holds_up_no_job_of_another_model(
    jobs: Jobs, connection: DictConnection, another: DictConnection, of_all: UUID, look: Claim
) -> None:
    first, second, third = (jobs.add(model=model) for model in MODELS)

    with connection.transaction():
        held = look(connection, of_all, first)
        claimed = [look(another, lease(another, models=MODELS), first) for _ in range(3)]

    assert held == first
    assert claimed == [second, third, None]


@pytest.mark.parametrize("look", [_by_ticket, _by_looking])
def test_racing_workers_of_several_models_leave_no_job(
    jobs: Jobs, backlog: int, look: Claim
) -> None:
    job_ids = [jobs.add(model=MODELS[n % 3]) for n in range(NUM_JOBS)]
    together = Barrier(NUM_WORKERS)

    def race(_: int) -> list[UUID]:
        with connect(jobs.urls.worker, application_name="test-worker") as connection:
            worker_id = lease(connection, models=MODELS)
            together.wait(timeout=10)
            claims = (look(connection, worker_id, job_ids[0]) for _ in job_ids)
            return [job_id for job_id in claims if job_id]

    with ThreadPoolExecutor(NUM_WORKERS) as threads:
        claimed = [job_id for mine in threads.map(race, range(NUM_WORKERS)) for job_id in mine]

    assert sorted(claimed) == sorted(job_ids)
