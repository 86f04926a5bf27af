from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import httpx
import pytest

from api import waiting
from store.pools import DictConnection
from tasks.keys import stream_channel
from tests.integration.api.conftest import Tenant
from tests.integration.api.producer import Producer
from tests.support.waiting import until

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "What is a service tier?"}]}


async def test_created_job_is_queued_and_readable(http: httpx.AsyncClient) -> None:
    created = await http.post("/v1/jobs", json=CHAT | {"max_tokens": 8, "metadata": {"a": "b"}})

    job = created.json()
    assert created.status_code == 202
    assert created.headers["location"] == f"/v1/jobs/{job['id']}"
    assert job["status"] == "queued"
    assert job["events_url"] == f"/v1/jobs/{job['id']}/events"
    # The place costs a query of its own, so the answer to a submission doesn't tell it.
    assert job["queue"] == {"position": None, "eta_s": None, "reason": "waiting_for_slot"}
    assert job["metadata"] == {"a": "b"}
    read = (await http.get(created.headers["location"])).json()
    assert read["queue"]["position"] == 0
    assert read | {"queue": None} == job | {"queue": None}


async def test_admission_reserves_the_worst_case(
    http: httpx.AsyncClient, owner: DictConnection, tenant: Tenant
) -> None:
    created = await http.post("/v1/jobs", json=CHAT | {"max_tokens": 10})

    row = _one(owner, "SELECT * FROM jobs")
    reserved = -(-(row["input_tokens"] * 2_000_000 + 10 * 4_000_000) // 1_000_000)
    assert created.status_code == 202
    assert row["max_output_tokens"] == 10
    assert _one(owner, "SELECT held_micros FROM accounts")["held_micros"] == reserved
    payload = _one(owner, "SELECT * FROM job_payloads")
    assert payload["request"] == CHAT | {"max_tokens": 10}
    assert payload["sampling"] == {"max_tokens": 10}
    assert len(payload["prompt_token_ids"]) == 4 * row["input_tokens"]


async def test_finished_job_shows_output_usage_and_cost(
    http: httpx.AsyncClient, producer: Producer
) -> None:
    created = (await http.post("/v1/jobs", json=CHAT)).json()
    running = producer.claim()
    running.say("Hello")
    running.say(" world")
    producer.finish(running)

    job = (await http.get(f"/v1/jobs/{created['id']}")).json()

    assert job["status"] == "completed"
    assert job["output"] == [{"index": 0, "text": "Hello world", "finish_reason": "stop"}]
    assert job["usage"]["output_tokens"] == 2
    assert job["cost_micros"] == 7
    assert job["queue"] is None
    assert job["error"] is None


async def test_long_poll_answers_when_the_job_ends(
    http: httpx.AsyncClient, producer: Producer
) -> None:
    created = (await http.post("/v1/jobs", json=CHAT)).json()
    poll = asyncio.create_task(http.get(f"/v1/jobs/{created['id']}?wait_s=20"))
    channel = stream_channel(UUID(created["id"].removeprefix("job_"))).encode()
    await until(lambda: channel in producer.redis.pubsub_channels(), what="the poll's watch")
    assert not poll.done()
    began = asyncio.get_running_loop().time()

    producer.finish(producer.claim())

    assert (await poll).json()["status"] == "completed"
    assert asyncio.get_running_loop().time() - began < 2


async def test_long_poll_ends_with_the_wait(http: httpx.AsyncClient) -> None:
    created = await http.post("/v1/jobs?wait_s=0.2", json=CHAT)

    assert created.status_code == 202
    assert created.json()["status"] == "queued"


async def test_jobs_are_listed_newest_first_in_pages(http: httpx.AsyncClient) -> None:
    ids = [(await http.post("/v1/jobs", json=CHAT)).json()["id"] for _ in range(5)]

    first = (await http.get("/v1/jobs?limit=2")).json()
    second = (await http.get(f"/v1/jobs?limit=3&after={first['last_id']}")).json()

    assert first["object"] == "list"
    assert [job["id"] for job in first["data"] + second["data"]] == ids[::-1]
    assert first["first_id"] == ids[-1]
    assert (first["has_more"], second["has_more"]) == (True, False)


async def test_jobs_are_listed_by_status(http: httpx.AsyncClient, producer: Producer) -> None:
    for _ in range(2):
        await http.post("/v1/jobs", json=CHAT)
    producer.finish(producer.claim())

    done = (await http.get("/v1/jobs?status=completed")).json()["data"]

    assert [job["status"] for job in done] == ["completed"]


async def test_queued_job_is_cancelled_at_once(http: httpx.AsyncClient) -> None:
    created = (await http.post("/v1/jobs", json=CHAT)).json()

    cancelled = (await http.post(f"/v1/jobs/{created['id']}/cancel")).json()

    assert cancelled["status"] == "cancelled"
    assert cancelled["error"]["code"] == "cancelled_by_user"
    assert cancelled["error"]["retryable"] is False


async def test_running_job_is_cancelled_through_its_worker(
    http: httpx.AsyncClient, producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "CANCEL_WAIT_S", 0.1)  # this worker doesn't hear it
    created = (await http.post("/v1/jobs", json=CHAT)).json()
    producer.claim()
    channel = producer.redis.pubsub()  # type: ignore[no-untyped-call]
    channel.subscribe(f"cancel:{producer.worker_id.hex}")
    channel.get_message(timeout=1)

    answer = await http.post(f"/v1/jobs/{created['id']}/cancel")

    assert answer.json()["status"] == "in_progress"
    message = await asyncio.to_thread(channel.get_message, timeout=2)
    assert message
    assert message["data"].decode() == created["id"].removeprefix("job_")
    channel.close()


async def test_service_tier_must_be_in_the_plan(
    http: httpx.AsyncClient, owner: DictConnection, tenant: Tenant
) -> None:
    owner.execute("UPDATE tenants SET tiers = ARRAY['default'] WHERE id = %s", (tenant.id,))

    refused = await http.post("/v1/jobs", json=CHAT | {"service_tier": "priority"})
    taken = await http.post("/v1/jobs", json=CHAT | {"service_tier": "auto"})

    assert (refused.status_code, refused.json()["error"]["param"]) == (403, "service_tier")
    assert taken.json()["service_tier"] == "default"


async def test_without_a_limit_the_context_is_used_up(
    http: httpx.AsyncClient, owner: DictConnection
) -> None:
    await http.post("/v1/jobs", json={"model": "tiny", "prompt": "abc " * 50})

    row = _one(owner, "SELECT input_tokens, max_output_tokens FROM jobs")
    assert row["max_output_tokens"] == min(128, 256 - row["input_tokens"])


async def test_sampling_reaches_the_payload_by_the_engines_names(
    http: httpx.AsyncClient, owner: DictConnection
) -> None:
    sampling = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 4,
        "min_p": 0.1,
        "presence_penalty": 1,
        "frequency_penalty": -1,
        "repetition_penalty": 1.1,
        "logit_bias": {"7": 3},
        "seed": 5,
        "stop": "x",
    }

    created = await http.post("/v1/jobs", json=CHAT | sampling | {"max_completion_tokens": 4})

    stored = _one(owner, "SELECT sampling FROM job_payloads")["sampling"]
    assert created.status_code == 202
    assert stored == sampling | {"stop": ["x"], "max_tokens": 4}


def _one(owner: DictConnection, query: str) -> dict[str, Any]:
    row = owner.execute(query.encode()).fetchone()
    assert row is not None
    return row
