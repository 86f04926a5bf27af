"""The main path through every process: load from several tenants, and readers that drop."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from billing.ledger import verify
from store.pools import connect
from tests.e2e.streams import Reader
from tests.support.cluster import Cluster
from tests.support.member import Tenant
from workers.inference.engine.stub import expected_text

NUM_JOBS = 300
TIERS = ("priority", "default", "flex")


def submit(http: httpx.Client, **body: Any) -> str:
    request = {"model": "demo", "prompt": "Hello", "temperature": 0, **body}
    response = http.post("/v1/jobs", json=request)
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


@pytest.fixture(scope="module")
def tenants(cluster: Cluster) -> list[Tenant]:
    return [cluster.create_tenant(f"load-{number}") for number in range(3)]


@pytest.fixture
def clients(cluster: Cluster, tenants: list[Tenant]) -> Iterator[list[httpx.Client]]:
    with ExitStack() as stack:
        yield [stack.enter_context(cluster.http(tenant)) for tenant in tenants]


def test_metrics_are_on_a_port_of_their_own_and_no_route_of_the_api(cluster: Cluster) -> None:
    port = cluster.apis[0].spec.environment["MILLRACE_METRICS_PORT"]

    on_api = httpx.get(f"{cluster.url}/metrics", trust_env=False)
    on_own = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False)

    assert (on_api.status_code, on_api.json()["error"]["code"]) == (404, "unknown_url")
    assert "millrace_api_requests_total" in on_own.text
    assert "millrace_api" not in on_api.text


def test_300_jobs_of_three_tenants_end_once_and_are_billed_once(
    cluster: Cluster, tenants: list[Tenant], clients: list[httpx.Client]
) -> None:
    sizes = random.Random(1)

    def run(number: int) -> tuple[Reader | None, dict[str, Any], str]:
        http = clients[number % 3]
        num_tokens = sizes.randint(5, 60)
        job_id = submit(
            http, seed=number, max_tokens=num_tokens, service_tier=TIERS[number // 3 % 3]
        )
        reader = None
        if number % 2:
            reader = Reader(http, job_id)
            reader.read_to_end()
        job = {"status": "queued"}
        while job["status"] in ("queued", "in_progress"):
            job = http.get(f"/v1/jobs/{job_id}", params={"wait_s": 30}).json()
        return reader, job, expected_text(number, num_tokens)

    with ThreadPoolExecutor(max_workers=60) as threads:
        results = list(threads.map(run, range(NUM_JOBS)))

    for reader, job, text in results:
        assert job["status"] == "incomplete"
        assert job["output"][0]["text"] == text
        if reader is not None:
            assert reader.text == text
            assert reader.job == job
    theirs = [[tenant.id for tenant in tenants]]
    bills = "SELECT count(*) AS n FROM ledger_entries WHERE kind = 'usage' AND tenant_id = ANY(%s)"
    cluster.wait_until(
        lambda: cluster.query(bills, theirs) == [{"n": NUM_JOBS}], what="one ledger entry each"
    )
    with connect(cluster.platform.database.owner, application_name="test") as connection:
        report = verify(connection)
    assert report.ok, report.to_json()
    held = "SELECT sum(held_micros)::int AS held FROM accounts WHERE tenant_id = ANY(%s)"
    assert cluster.query(held, theirs) == [{"held": 0}]


def test_reader_that_drops_every_100_ms_gets_exactly_the_stored_text(
    cluster: Cluster, tenant: Tenant
) -> None:
    with cluster.http(tenant) as http:
        job_id = submit(http, seed=5, max_tokens=400)
        reader = Reader(http, job_id)

        reader.read_to_end(drop_after_s=0.1)

    assert reader.num_connections > 5
    assert reader.seqs == list(range(1, len(reader.seqs) + 1))
    assert reader.text == expected_text(5, 400)
    assert reader.job is not None
    assert reader.text == reader.job["output"][0]["text"]


def test_late_reader_replays_the_whole_stream(cluster: Cluster, tenant: Tenant) -> None:
    with cluster.http(tenant) as http:
        job_id = submit(http, seed=6, max_tokens=30)
        first = Reader(http, job_id)
        first.read_to_end()

        late = Reader(http, job_id)
        late.read_to_end()

    assert (late.seqs, late.text, late.job) == (first.seqs, first.text, first.job)


def test_idempotent_repeat_gives_the_same_job(cluster: Cluster, tenant: Tenant) -> None:
    with cluster.http(tenant) as http:
        body = {"model": "demo", "prompt": "Hello", "max_tokens": 5}
        headers = {"Idempotency-Key": "order-1"}

        replies = [http.post("/v1/jobs", json=body, headers=headers) for _ in range(3)]
        other = http.post("/v1/jobs", json={**body, "max_tokens": 6}, headers=headers)

    assert len({reply.json()["id"] for reply in replies}) == 1
    assert other.status_code == 422
    assert other.json()["error"]["code"] == "idempotency_key_reused"


def test_cancel_ends_a_running_job_and_bills_what_was_produced(
    cluster: Cluster, tenant: Tenant
) -> None:
    with cluster.http(tenant) as http:
        job_id = submit(http, seed=7, max_tokens=3_000)
        cluster.wait_until(lambda: http.get(f"/v1/jobs/{job_id}").json()["status"] == "in_progress")

        http.post(f"/v1/jobs/{job_id}/cancel")
        job = http.get(f"/v1/jobs/{job_id}", params={"wait_s": 10}).json()

    assert job["status"] == "cancelled"
    assert job["error"]["code"] == "cancelled_by_user"
    assert 0 <= job["usage"]["output_tokens"] < 3_000
    cluster.wait_until(
        lambda: (
            cluster.query(
                "SELECT amount_micros FROM usage WHERE job_id = %s", (job_id.removeprefix("job_"),)
            )
            == [{"amount_micros": job["cost_micros"]}]
        ),
        what="the bill",
    )


def test_prompt_is_in_no_log_and_no_queue(cluster: Cluster, tenant: Tenant) -> None:
    canary = "xylophone-canary-9271"

    with cluster.http(tenant) as http:
        job_id = submit(http, prompt=f"Say {canary}", max_tokens=5)
        http.get(f"/v1/jobs/{job_id}", params={"wait_s": 10})

    assert canary not in cluster.logs()
    with cluster.redis() as client:
        dump = repr([client.dump(key) for key in client.scan_iter()])
    assert canary not in dump
