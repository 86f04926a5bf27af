"""What the statements of every job and every tick cost beside a flood of queued jobs and a year of
finished ones: pages, which depend on plans and rows alone. The same bounds hold at both sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest

from benchmarks.big_tables import POOL, BigTables, build
from cli.stack.database import DatabaseUrls
from store import attempts, leases, outcomes, reaping
from store.hints import MAX_SEEN, rehint
from store.pools import DictConnection
from store.reservations import release_orphans
from tasks.queues import NUM_LANES, lane_for
from tests.integration.store.writes import finish_of, lease, running_checkpoint
from tests.support.costs import pages_of
from tests.support.roles import Connections, connections
from tests.support.services import Services

# A page or two for each of 17 partitions and each index that is looked into, planning included.
# Reading 100,000 queued jobs takes 4,000 pages of the table.
MAX_PAGES = 1_000


@dataclass(frozen=True, slots=True)
class Large:
    """The tables, and a connection of each role to them."""

    roles: Connections
    tables: BigTables

    def pages(self, connection: DictConnection, call: Callable[[], object]) -> int:
        """Of a call whose plan is known and whose catalog is read."""
        for _ in range(7):
            call()
        return pages_of(self.roles.owner, connection, call)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((100_000, 20_000), id="100k"),
        pytest.param((1_500_000, 1_000_000), id="1500k", marks=pytest.mark.slow),
    ],
)
def large(services: Services, request: pytest.FixtureRequest) -> Iterator[Large]:
    num_queued, num_finished = request.param
    urls: DatabaseUrls = services.fresh_database()
    with connections(urls) as roles:
        yield Large(roles, build(roles.owner, num_queued=num_queued, num_finished=num_finished))
    services.drop_database(urls)


@pytest.fixture(params=["force_generic_plan", "force_custom_plan"])
def plans(large: Large, request: pytest.FixtureRequest) -> Iterator[None]:
    """Whichever way Postgres plans a prepared statement."""
    for connection in (large.roles.worker, large.roles.billing):
        connection.execute(f"SET plan_cache_mode = {request.param}".encode())
    yield
    for connection in (large.roles.worker, large.roles.billing):
        connection.execute("RESET plan_cache_mode")


@pytest.mark.usefixtures("plans")
def test_a_ticket_of_either_kind_of_tenant_is_claimed_by_its_index(large: Large) -> None:
    worker = large.roles.worker
    worker_id = lease(worker)
    flood = large.tables.queued_job(large.roles.owner, large.tables.flood)
    light = iter(_waiting(large, 8))

    costs = [
        large.pages(worker, lambda: attempts.claim_ticket(worker, worker_id, flood)),
        large.pages(worker, lambda: attempts.claim_ticket(worker, worker_id, next(light))),
    ]

    assert max(costs) < MAX_PAGES, costs


@pytest.mark.usefixtures("plans")
@pytest.mark.parametrize("is_lane_empty", [False, True])
def test_a_surplus_ticket_reads_no_backlog(large: Large, is_lane_empty: bool) -> None:
    worker = large.roles.worker
    worker_id = lease(worker)
    (job,) = _waiting(large, 1)
    lane = NUM_LANES if is_lane_empty else lane_for(large.tables.flood)
    large.roles.owner.execute(
        "UPDATE jobs SET status = 'cancelled', finished_at = now(), lane = %s WHERE id = %s",
        (lane, job),
    )
    claimed = attempts.claim_ticket(worker, worker_id, job)

    num_pages = large.pages(worker, lambda: attempts.claim_ticket(worker, worker_id, job))

    assert (claimed is None) == is_lane_empty
    assert num_pages < MAX_PAGES


@pytest.mark.usefixtures("plans")
def test_an_idle_look_reads_no_backlog(large: Large) -> None:
    worker = large.roles.worker
    worker_id = lease(worker)

    num_pages = large.pages(worker, lambda: attempts.claim_any(worker, worker_id, POOL))

    assert num_pages < MAX_PAGES


@pytest.mark.usefixtures("plans")
def test_an_idle_look_into_an_empty_pool_reads_no_backlog(large: Large) -> None:
    worker = large.roles.worker
    worker_id = lease(worker)

    num_pages = large.pages(worker, lambda: attempts.claim_any(worker, worker_id, "empty"))

    assert num_pages < MAX_PAGES


def test_the_writes_of_a_running_job_cost_the_job_alone(large: Large) -> None:
    worker = large.roles.worker
    worker_id = lease(worker)
    claimed = [attempts.claim_any(worker, worker_id, POOL) for _ in range(8)]
    running = [job for job in claimed if job is not None]
    saved = [running_checkpoint(job, "four") for job in running]
    ends = iter(running)

    costs = [
        large.pages(worker, lambda: attempts.save_checkpoints(worker, saved)),
        large.pages(worker, lambda: leases.held_jobs(worker, worker_id)),
        large.pages(worker, lambda: attempts.finish(worker, finish_of(next(ends), worker_id))),
    ]

    assert max(costs) < MAX_PAGES, costs


_TICKS: dict[str, Callable[[Connections], Any]] = {
    "reap_waiting": lambda roles: reaping.reap_waiting(roles.worker),
    "reap_lost": lambda roles: reaping.reap_lost(roles.worker),
    "jobs_that_need_clients": lambda roles: reaping.jobs_that_need_clients(roles.worker, limit=500),
    "settle": lambda roles: outcomes.settle(roles.billing, limit=2_000),
    "oldest_unsettled": lambda roles: outcomes.oldest_unsettled(roles.worker, older_than_s=10),
    "release_orphans": lambda roles: release_orphans(roles.billing),
}


def test_the_rehinter_looks_at_some_jobs_of_each_lane(large: Large) -> None:
    worker = large.roles.worker

    num_pages = large.pages(worker, lambda: rehint(worker))

    # 16 lanes, each looked at from two places, a page of the table for each job that is seen.
    assert num_pages < 16 * 2 * MAX_SEEN


@pytest.mark.parametrize("name", _TICKS)
def test_a_tick_with_nothing_to_do_reads_no_backlog(large: Large, name: str) -> None:
    roles = large.roles
    roles.owner.execute("UPDATE job_outcomes SET settled_at = now() WHERE settled_at IS NULL")
    connection = roles.billing if name in ("settle", "release_orphans") else roles.worker

    num_pages = large.pages(connection, lambda: _TICKS[name](roles))

    assert num_pages < MAX_PAGES


def test_jobs_that_are_late_or_cancelled_are_found_in_a_backlog(large: Large) -> None:
    owner = large.roles.owner
    ids = _waiting(large, 4)
    owner.execute("UPDATE jobs SET deadline_at = now() WHERE id = ANY(%s)", (ids[:2],))
    owner.execute(
        "UPDATE jobs SET cancel_requested_at = now(), cancel_by = 'user' WHERE id = ANY(%s)",
        (ids[1:],),
    )

    reaped = reaping.reap_waiting(large.roles.worker)

    verdicts = {job.job_id: job.verdict for job in reaped}
    assert verdicts == {ids[0]: "deadline", **dict.fromkeys(ids[1:], "cancelled_by_user")}


def _waiting(large: Large, num: int) -> list[UUID]:
    """Queued jobs of tenants that have no other."""
    rows = large.roles.owner.execute(
        "SELECT id FROM jobs WHERE tenant_id = ANY(%s) AND status = 'queued' LIMIT %s",
        (list(large.tables.light), num),
    ).fetchall()
    return [row["id"] for row in rows]
