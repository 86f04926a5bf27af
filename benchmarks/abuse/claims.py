"""How long a worker takes to claim a light tenant's job from a queue full of somebody else's."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

from benchmarks.big_tables import POOL, BigTables, build
from benchmarks.figures import median_of, percentile
from store import claiming, leases
from store.leases import Lease
from store.pools import DictConnection, connect
from tests.support.roles import connections
from tests.support.services import Services

NUM_CLAIMS = 500  # of the light tenants' jobs; as many follow by a ticket of the flood


def measure(*, num_queued: int, num_finished: int) -> dict[str, Any]:
    """The slowest of both in a hundred. Building the tables takes minutes."""
    with Services() as services, connections(urls := services.fresh_database()) as of:
        tables = build(of.owner, num_queued=num_queued, num_finished=num_finished)
        with connect(urls.worker, application_name="bench", plans_once=True) as worker:
            worker_id = _worker(worker)
            light = _claim_ms(worker, worker_id, _light_jobs(of.owner, tables))
            flood = _claim_ms(worker, worker_id, [_flood_job(of.owner, tables)] * NUM_CLAIMS)
    return {
        "claim_ms_p99": round(max(percentile(light, 0.99), percentile(flood, 0.99)), 2),
        "claim_ms_p50": median_of(light + flood, 2),
        "jobs_queued": num_queued,
        "jobs_finished": num_finished,
    }


def _worker(connection: DictConnection) -> UUID:
    lease = Lease(
        worker_id=uuid4(),
        hostname="bench",
        pid=1,
        pool=POOL,
        device="cpu",
        models=("demo",),
        slots=32,
    )
    leases.register(connection, lease)
    return lease.worker_id


def _light_jobs(owner: DictConnection, tables: BigTables) -> list[UUID]:
    return [tables.queued_job(owner, tenant_id) for tenant_id in tables.light[:NUM_CLAIMS]]


def _flood_job(owner: DictConnection, tables: BigTables) -> UUID:
    return tables.queued_job(owner, tables.flood)


def _claim_ms(connection: DictConnection, worker_id: UUID, job_ids: Sequence[UUID]) -> list[float]:
    times = []
    for job_id in job_ids:
        leases.beat(connection, worker_id, num_running=0)
        started = time.perf_counter()
        claimed = claiming.claim_ticket(connection, worker_id, job_id)
        times.append((time.perf_counter() - started) * 1000)
        assert claimed is not None, "there is a job for every ticket"
    return times
