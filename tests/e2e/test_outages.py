"""Whatever dies or stops under load: texts are exact, jobs are billed once, none is stuck."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from billing.ledger import verify
from store.pools import connect
from tests.e2e.streams import Reader, read_beside
from tests.e2e.test_job_path import submit
from tests.support.cluster import Cluster
from tests.support.member import Member, Tenant
from workers.inference.engine.stub import expected_text

NUM_JOBS = 30
NUM_READERS = 10
NUM_TOKENS = 400  # 4 s of the stub

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    environment = {"MILLRACE_STUB_STEP_MS": "10"}
    with Cluster(num_apis=2, num_workers=2, worker_environment=environment) as started:
        yield started


@pytest.fixture(scope="module")
def tenant(cluster: Cluster) -> Tenant:
    return cluster.create_tenant("acme")


def _away(stop: Callable[[], None], start: Callable[[], None], *, seconds: float) -> None:
    stop()
    time.sleep(seconds)  # the fault itself: how long it lasts is the point
    start()


def _restart(*members: Member) -> None:
    for member in members:
        member.kill()
    for member in members:
        member.start()


FAULTS: dict[str, Callable[[Cluster], None]] = {
    "postgres away for 4 s": lambda c: _away(c.kill_postgres, c.start_postgres, seconds=4),
    "postgres away longer than a lease": lambda c: _away(
        c.kill_postgres, c.start_postgres, seconds=12
    ),
    "redis stopped for 10 s": lambda c: _away(c.pause_redis, c.resume_redis, seconds=10),
    "redis emptied": lambda c: c.restart_redis_empty(),
    "the readers' API killed": lambda c: _restart(c.apis[1]),
    "worker, billing and maintenance killed": lambda c: _restart(
        c.workers[0], c.billing[0], c.maintenance[0]
    ),
    "worker drained": lambda c: c.workers[0].restart(),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_job_ends_with_its_text_and_one_bill(
    cluster: Cluster, tenant: Tenant, fault: str
) -> None:
    with cluster.http(tenant) as http, cluster.http(tenant, api=1) as other:
        jobs = [submit(http, seed=seed, max_tokens=NUM_TOKENS) for seed in range(NUM_JOBS)]
        readers = [Reader(other, job_id) for job_id in jobs[:NUM_READERS]]
        readings = [read_beside(reader, timeout_s=90) for reader in readers]
        cluster.wait_until(lambda: all(reader.last_seq > 50 for reader in readers))

        FAULTS[fault](cluster)
        for reading in readings:
            reading.result(timeout=90)
        ended = [_ended(http, job_id) for job_id in jobs]

    assert [job["status"] for job in ended] == ["incomplete"] * NUM_JOBS
    texts = [expected_text(seed, NUM_TOKENS) for seed in range(NUM_JOBS)]
    assert [job["output"][0]["text"] for job in ended] == texts
    assert [reader.text for reader in readers] == texts[:NUM_READERS]
    _assert_books_are_right(cluster)


def _ended(http: httpx.Client, job_id: str) -> dict[str, Any]:
    while True:
        response = http.get(f"/v1/jobs/{job_id}", params={"wait_s": 30})
        if response.status_code == 200 and response.json()["finished_at"]:
            job: dict[str, Any] = response.json()
            return job


def _assert_books_are_right(cluster: Cluster) -> None:
    cluster.wait_until(
        lambda: not cluster.query("SELECT 1 FROM job_outcomes WHERE settled_at IS NULL"),
        what="settlement",
    )
    with connect(cluster.platform.database.owner, application_name="test") as connection:
        report = verify(connection)
    assert report.ok, report.to_json()
    assert cluster.query("SELECT sum(held_micros)::int AS held FROM accounts") == [{"held": 0}]
