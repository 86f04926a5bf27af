"""A platform tells of the end of what runs in the background."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tasks.webhook_events import WEBHOOK_EVENTS
from tests.support.cluster import Cluster
from tests.support.member import Tenant
from tests.support.webhook_receiver import Receiver, receiver

PRIVATE = {"MILLRACE_WEBHOOKS_ALLOW_PRIVATE": "1"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(num_batches=1, environment=PRIVATE) as started:
        yield started


@pytest.fixture(scope="module")
def tenant(cluster: Cluster) -> Tenant:
    return cluster.create_tenant("acme")


@pytest.fixture
def server() -> Iterator[Receiver]:
    with receiver() as opened:
        yield opened


@pytest.fixture
def http(cluster: Cluster, tenant: Tenant) -> Iterator[httpx.Client]:
    with cluster.http(tenant) as opened:
        yield opened


@pytest.fixture
def client(cluster: Cluster, tenant: Tenant, webhook: dict[str, Any]) -> Iterator[openai.OpenAI]:
    base_url = f"{cluster.url}/v1"
    with openai.OpenAI(
        base_url=base_url, api_key=tenant.api_key, webhook_secret=webhook["signing_secret"]
    ) as client:
        yield client


@pytest.fixture
def webhook(http: httpx.Client, server: Receiver) -> Iterator[dict[str, Any]]:
    body = {"name": "mine", "url": server.url, "event_types": list(WEBHOOK_EVENTS)}
    created = http.post("/v1/webhook_endpoints", json=body).raise_for_status().json()
    yield created
    http.delete(f"/v1/webhook_endpoints/{created['id']}").raise_for_status()


def _events(client: openai.OpenAI, server: Receiver) -> list[Any]:
    return [client.webhooks.unwrap(one.body, one.headers) for one in server.received]


def test_a_background_response_is_told_of_when_it_is_over(
    cluster: Cluster, client: openai.OpenAI, server: Receiver
) -> None:
    response = client.responses.create(model="demo", input="hello", background=True)
    client.responses.create(model="demo", input="hello")  # its client waits: nobody is told

    cluster.wait_until(lambda: server.received, what="the event")

    [event] = _events(client, server)
    assert event.data.id == response.id
    assert event.type == f"response.{client.responses.retrieve(response.id).status}"


def test_a_batch_is_told_of_though_the_sender_dies_and_the_receiver_fails(
    cluster: Cluster,
    client: openai.OpenAI,
    server: Receiver,
    http: httpx.Client,
    webhook: dict[str, Any],
) -> None:
    body = {"model": "demo", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
    url: Any = "/v1/chat/completions"
    line = json.dumps({"custom_id": "1", "method": "POST", "url": url, "body": body}).encode()
    file = client.files.create(file=("in.jsonl", line), purpose="batch")
    server.may_answer.clear()
    batch = client.batches.create(input_file_id=file.id, endpoint=url, completion_window="24h")
    cluster.wait_until(lambda: server.received, timeout_s=60, what="the first attempt")

    cluster.maintenance[0].kill()  # it waits for an answer
    server.may_answer.set()
    cluster.maintenance[0].start()
    with cluster.connect() as connection:  # the dead one's lease is over
        connection.execute(
            "UPDATE webhook_deliveries SET next_attempt_at = now()"
            " WHERE next_attempt_at IS NOT NULL"
        )
    path = f"/v1/webhook_endpoints/{webhook['id']}/deliveries"
    cluster.wait_until(
        lambda: http.get(path).json()["data"][0]["status"] == "delivered", what="the delivery"
    )

    events = _events(client, server)
    assert {(event.type, event.data.id) for event in events} == {("batch.completed", batch.id)}
    assert len({event.id for event in events}) == 1
    [delivery] = http.get(path).json()["data"]
    assert delivery["attempts"] == len(events) == 2


def test_a_sample_tells_what_the_endpoint_answers(
    client: openai.OpenAI, server: Receiver, webhook: dict[str, Any]
) -> None:
    server.answer(418)

    result = client.webhooks.test(webhook["id"], event_type="batch.expired")

    assert (result.status_code, result.event_type) == (418, "batch.expired")
    [event] = _events(client, server)
    assert event.type == "batch.expired"


def test_a_sample_that_nobody_answers_is_an_error(
    client: openai.OpenAI, webhook: dict[str, Any]
) -> None:
    client.webhooks.update(webhook["id"], url="http://127.0.0.1:1/")

    with pytest.raises(openai.BadRequestError, match="connection failed"):
        client.webhooks.test(webhook["id"], event_type="response.completed")
