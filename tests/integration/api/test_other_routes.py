from __future__ import annotations

import asyncio
import time
from pathlib import Path
from uuid import uuid4

import httpx
from kombu import Connection, Queue
from prometheus_client import generate_latest

from api.metrics import registry
from store.catalog import apply_catalog
from store.pools import DictConnection
from tasks.app import app as celery
from tasks.queues import ServiceTier, lane_for, queue_for
from tests.integration.api.conftest import Tenant
from tests.integration.api.producer import Producer
from tests.support.services import Services
from tests.support.waiting import until

BODY = {"model": "tiny", "prompt": "hello", "max_tokens": 4}


async def test_models_show_prices_and_limits(http: httpx.AsyncClient) -> None:
    listed = (await http.get("/v1/models")).json()
    one = (await http.get("/v1/models/tiny")).json()

    assert listed == {"object": "list", "data": [one]}
    assert (one["id"], one["object"], one["owned_by"]) == ("tiny", "model", "millrace")
    assert (one["context_length"], one["max_output_tokens"]) == (256, 128)
    assert one["pricing"]["tiers"]["flex"]["output_micros"] == 2_000_000


async def test_unknown_model_is_not_found(http: httpx.AsyncClient) -> None:
    answer = await http.get("/v1/models/owner/name")

    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"


async def test_retired_model_takes_no_jobs(http: httpx.AsyncClient, owner: DictConnection) -> None:
    owner.execute("UPDATE models SET status = 'retired'")

    async def is_refused() -> bool:
        return (await http.post("/v1/jobs", json=BODY)).status_code == 404

    await until(is_refused, timeout_s=15, what="the refusal")


async def test_usage_sums_by_model_and_tier(
    http: httpx.AsyncClient, owner: DictConnection, tenant: Tenant, other_tenant: Tenant
) -> None:
    for owner_id, tier, micros in (
        (tenant.id, "default", 5),
        (tenant.id, "default", 6),
        (tenant.id, "flex", 7),
        (other_tenant.id, "default", 100),
    ):
        owner.execute(
            "INSERT INTO usage (job_id, tenant_id, api_key_id, model, service_tier, status, payer,"
            " input_tokens, cached_tokens, output_tokens, price_version, amount_micros, currency,"
            " created_at) VALUES (%s, %s, 'k', 'tiny', %s, 'completed', 'tenant', 10, 2, 3, 1, %s,"
            " 'USD', now())",
            (uuid4(), owner_id, tier, micros),
        )
    await http.post("/v1/jobs", json=BODY)

    usage = (await http.get("/v1/usage")).json()
    past = (await http.get(f"/v1/usage?end_time={int(time.time()) - 60}")).json()

    assert usage["totals"]["amount_micros"] == 18
    assert usage["totals"]["num_jobs"] == 3
    lines = [(line["service_tier"], line["amount_micros"]) for line in usage["data"]]
    assert lines == [("default", 11), ("flex", 7)]
    assert usage["balance_micros"] == 10_000_000
    assert usage["held_micros"] > 0
    assert usage["available_micros"] == usage["balance_micros"] - usage["held_micros"]
    assert past["data"] == []


async def test_ready_says_what_is_missing(http: httpx.AsyncClient, services: Services) -> None:
    without_worker = await http.get("/readyz")
    services.redis.stop()
    try:
        without_redis = await http.get("/readyz")
        alive = await http.get("/livez")
    finally:
        services.redis.start()

    assert without_worker.status_code == without_redis.status_code == 503
    assert without_worker.json()["checks"] == {"postgres": "ok", "redis": "ok", "worker": "none"}
    assert without_redis.json()["checks"]["redis"] == "unavailable"
    assert alive.status_code == 200


async def test_ready_with_a_worker(http: httpx.AsyncClient, producer: Producer) -> None:
    answer = await http.get("/readyz")

    assert (answer.status_code, answer.json()["status"]) == (200, "ready")


async def test_metrics_name_routes_not_paths(http: httpx.AsyncClient) -> None:
    created = (await http.post("/v1/jobs", json=BODY)).json()
    await http.get(f"/v1/jobs/{created['id']}")
    await http.get("/v1/made-up")

    text = generate_latest(registry).decode()

    assert 'route="/v1/jobs/{job_id}",status="200"' in text
    assert 'route="unmatched",status="404"' in text
    assert created["id"] not in text
    assert "made-up" not in text


async def test_every_answer_has_a_request_id_and_a_time(http: httpx.AsyncClient) -> None:
    answers = [await http.get(path) for path in ("/livez", "/v1/models", "/v1/nothing")]

    ids = [answer.headers["x-request-id"] for answer in answers]
    assert len(set(ids)) == 3
    assert all(int(answer.headers["openai-processing-ms"]) >= 0 for answer in answers)


async def test_hint_reaches_its_lane(
    http: httpx.AsyncClient, tenant: Tenant, services: Services
) -> None:
    created = (await http.post("/v1/jobs", json=BODY | {"service_tier": "flex"})).json()

    queue = queue_for("default", ServiceTier.FLEX, lane_for(tenant.id))
    with celery.connection_for_read() as connection:
        message = await asyncio.to_thread(_take, connection, queue)
    assert message == [created["id"].removeprefix("job_")]


async def test_without_redis_jobs_are_still_admitted(
    http: httpx.AsyncClient, services: Services, owner: DictConnection
) -> None:
    services.redis.stop()
    try:
        answers = [await http.post("/v1/jobs", json=BODY) for _ in range(3)]
    finally:
        services.redis.start()

    assert [answer.status_code for answer in answers] == [202, 202, 202]
    row = owner.execute("SELECT count(*) AS queued FROM jobs WHERE status = 'queued'").fetchone()
    assert row == {"queued": 3}


async def test_new_model_is_served_as_soon_as_it_is_asked_for(
    http: httpx.AsyncClient, owner: DictConnection, catalog_file: Path
) -> None:
    apply_catalog(owner, [catalog_file, _with_second_model(catalog_file)])

    async def is_served() -> bool:
        answer = await http.post("/v1/jobs", json=BODY | {"model": "tiny-two"})
        return answer.status_code == 202

    await until(is_served, timeout_s=5, what="the new model")


def _with_second_model(catalog_file: Path) -> Path:
    changed = catalog_file.with_name("changed.toml")
    changed.write_text(catalog_file.read_text().replace("models.tiny", "models.tiny-two"))
    return changed


def _take(connection: Connection, queue: Queue) -> list[str]:
    bound = queue(connection.default_channel)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if message := bound.get(no_ack=True):
            args: list[str] = message.decode()[0]
            return args
        time.sleep(0.02)
    raise AssertionError("no hint came")
