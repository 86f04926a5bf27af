"""Webhook endpoints through OpenAI's own client: made, changed, and nobody else's."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import openai
import pytest
from openai.types.webhooks import WebhookEndpoint, WebhookEndpointWithSecret

from api.routes import webhook_endpoints
from api.schemas.webhooks import DeliveryShown, WebhookEndpointShown
from api.settings import MAX_WEBHOOK_TESTS_PER_H
from store.pools import DictConnection
from store.tenants import create_api_key
from store.webhooks import MAX_ENDPOINTS
from tasks.ids import parse_job_id
from tests.integration.api.conftest import PEPPER, Tenant

PATH = "/v1/webhook_endpoints"
URL = "https://example.com/hooks"
BODY: dict[str, Any] = {"name": "mine", "url": URL, "event_types": ["response.completed"]}


async def _create(client: openai.AsyncOpenAI, **fields: Any) -> WebhookEndpointWithSecret:
    return await client.webhooks.create(**{**BODY, **fields})


def _bytes(secret: str) -> bytes:
    return base64.b64decode(secret.removeprefix("whsec_"))


async def test_the_secret_is_shown_once(
    client: openai.AsyncOpenAI, http: httpx.AsyncClient
) -> None:
    created = await _create(client)

    WebhookEndpointWithSecret.model_validate(created.model_dump(), strict=True)
    assert len(_bytes(created.signing_secret)) == 32
    assert created.signing_secret_hint == f"whsec_...{created.signing_secret[-4:]}"
    shown = await client.webhooks.retrieve(created.id)
    assert shown.model_dump() == created.model_dump(exclude={"signing_secret"})
    assert [one async for one in client.webhooks.list()] == [shown]
    WebhookEndpointShown.model_validate((await http.get(f"{PATH}/{created.id}")).json())


async def test_event_types_are_listed(client: openai.AsyncOpenAI) -> None:
    listed = await client.webhooks.event_types.list()

    assert {"response.completed", "batch.expired"} < set(listed.data)


async def test_what_is_left_out_of_an_update_stays(
    client: openai.AsyncOpenAI, http: httpx.AsyncClient, owner: DictConnection
) -> None:
    created = await _create(client)
    owner.execute(
        "UPDATE webhook_endpoints SET updated_at = '2026-01-01', created_at = '2026-01-01'"
    )

    same = await client.webhooks.update(created.id, name="mine")
    changed = await client.webhooks.update(created.id, event_types=["batch.failed"])
    off = (await http.post(f"{PATH}/{created.id}", json={"enabled": False})).json()

    assert same.updated_at == same.created_at
    assert changed.updated_at is not None
    assert changed.updated_at > changed.created_at
    assert (changed.name, changed.url, changed.event_types) == ("mine", URL, ["batch.failed"])
    assert (off["enabled"], off["event_types"]) == (False, ["batch.failed"])


async def test_an_endpoint_that_was_switched_off_begins_anew(
    client: openai.AsyncOpenAI, http: httpx.AsyncClient, owner: DictConnection
) -> None:
    created = await _create(client)
    owner.execute(
        "UPDATE webhook_endpoints SET is_enabled = false, disabled_reason = 'gone',"
        " failing_since = now() - interval '2 days'"
    )

    shown = (await http.post(f"{PATH}/{created.id}", json={"enabled": True})).json()

    assert (shown["enabled"], shown["disabled_reason"]) == (True, None)
    row = owner.execute("SELECT failing_since FROM webhook_endpoints").fetchone()
    assert row == {"failing_since": None}


@pytest.mark.parametrize("is_kept", [True, False])
async def test_an_old_secret_is_good_for_a_day_where_that_is_asked_for(
    client: openai.AsyncOpenAI, owner: DictConnection, is_kept: bool
) -> None:
    created = await _create(client)

    rotated = await client.webhooks.rotate_secret(
        created.id, keep_old_secret_active_for_24_hours=is_kept
    )

    row = owner.execute(
        "SELECT secret, previous_secret, previous_until > now() + interval '23 hours' AS is_kept"
        " FROM webhook_endpoints"
    ).fetchone()
    assert row is not None
    assert row["secret"] == _bytes(rotated.signing_secret)
    assert row["previous_secret"] == _bytes(created.signing_secret)
    assert row["is_kept"] is is_kept


async def test_a_sample_that_nobody_sends_is_no_answer(
    client: openai.AsyncOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook_endpoints, "SAMPLE_WAIT_S", 0.3)
    created = await _create(client)

    with pytest.raises(openai.InternalServerError) as error:
        await client.webhooks.test(created.id, event_type="batch.completed")

    assert error.value.status_code == 503


async def test_samples_are_bounded_by_the_hour(
    http: httpx.AsyncClient,
    client: openai.AsyncOpenAI,
    owner: DictConnection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(webhook_endpoints, "SAMPLE_WAIT_S", 0.0)
    created = await _create(client)
    path, sample = f"/v1/webhook_endpoints/{created.id}/test", {"event_type": "batch.failed"}
    absent = f"/v1/webhook_endpoints/{created.id[:-4]}0000/test"

    for _ in range(MAX_WEBHOOK_TESTS_PER_H):
        assert (await http.post(absent, json=sample)).status_code == 404  # makes nothing
        assert (await http.post(path, json=sample)).status_code == 503
    refused = await http.post(path, json=sample)

    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert "webhook tests an hour" in refused.json()["error"]["message"]
    kept = owner.execute("SELECT count(*) AS num FROM webhook_deliveries").fetchone()
    assert kept == {"num": MAX_WEBHOOK_TESTS_PER_H}


async def test_deliveries_can_be_listed_and_sent_again(
    client: openai.AsyncOpenAI, http: httpx.AsyncClient, owner: DictConnection, tenant: Tenant
) -> None:
    created = await _create(client)
    path = f"{PATH}/{created.id}/deliveries"
    for _ in range(3):
        owner.execute(
            "INSERT INTO webhook_deliveries (endpoint_id, tenant_id, event_id, type, object_id,"
            " delivered_at, next_attempt_at, attempts)"
            " VALUES (%s, %s, gen_random_uuid(), 'batch.failed', 'batch_1', now(), NULL, 3)",
            (parse_job_id(created.id, "whk_"), tenant.id),
        )

    first = (await http.get(path, params={"limit": 2})).json()
    rest = (await http.get(path, params={"after": first["last_id"]})).json()
    assert [first["has_more"], rest["has_more"]] == [True, False]
    assert len({one["id"] for one in [*first["data"], *rest["data"]]}) == 3
    delivery = DeliveryShown.model_validate(first["data"][0], strict=True)
    assert (delivery.status, delivery.event_type) == ("delivered", "batch.failed")

    again = (await http.post(f"{path}/{delivery.id}/resend")).json()

    assert (again["status"], again["attempts"]) == ("pending", 0)
    assert again["event_id"] == delivery.event_id
    assert (await http.get(f"{path}?status=pending")).json()["data"] == [again]


@pytest.mark.parametrize(
    "fields",
    [
        {"url": None},
        {"name": None},
        {"event_types": None},
        {"url": "http://example.com"},
        {"url": "https://127.0.0.1/"},
        {"url": "https://169.254.169.254/"},
        {"url": "https://user:pass@example.com/"},
        {"url": "https://example.com:6379/"},
        {"event_types": []},
        {"event_types": ["response.deleted"]},
        {"name": "x" * 257},
    ],
)
async def test_bad_endpoints_are_refused(http: httpx.AsyncClient, fields: dict[str, Any]) -> None:
    answer = await http.post(PATH, json={**BODY, **fields})

    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert (await http.get(PATH)).json()["data"] == []


async def test_a_tenant_has_a_bounded_number_of_endpoints(client: openai.AsyncOpenAI) -> None:
    for _ in range(MAX_ENDPOINTS):
        await _create(client)

    with pytest.raises(openai.BadRequestError):
        await _create(client)

    assert len((await client.webhooks.list()).data) == MAX_ENDPOINTS


async def test_a_deleted_endpoint_is_gone_with_its_deliveries(
    client: openai.AsyncOpenAI, owner: DictConnection, tenant: Tenant
) -> None:
    created = await _create(client)
    owner.execute(
        "INSERT INTO webhook_deliveries (endpoint_id, tenant_id, event_id, type, object_id)"
        " VALUES (%s, %s, gen_random_uuid(), 'batch.failed', 'batch_1')",
        (parse_job_id(created.id, "whk_"), tenant.id),
    )

    deleted = await client.webhooks.delete(created.id)

    assert (deleted.id, deleted.deleted) == (created.id, True)
    with pytest.raises(openai.NotFoundError):
        await client.webhooks.delete(created.id)
    assert owner.execute("SELECT 1 FROM webhook_deliveries").fetchall() == []


async def test_others_endpoints_are_not_there(
    client: openai.AsyncOpenAI, api_url: str, other_tenant: Tenant
) -> None:
    created = await _create(client)
    delivery = f"whd_{'0' * 32}"

    async with httpx.AsyncClient(
        base_url=api_url, headers=other_tenant.headers, trust_env=False
    ) as foreign:
        path = f"{PATH}/{created.id}"
        answers = [
            await foreign.get(path),
            await foreign.post(path, json={"enabled": False}),
            await foreign.delete(path),
            await foreign.post(f"{path}/rotate_secret", json={}),
            await foreign.post(f"{path}/test", json={"event_type": "batch.failed"}),
            await foreign.get(f"{path}/deliveries"),
            await foreign.post(f"{path}/deliveries/{delivery}/resend"),
        ]
        listed = (await foreign.get(PATH)).json()["data"]

    assert {answer.status_code for answer in answers} == {404}
    assert {answer.json()["error"]["code"] for answer in answers} == {"webhook_not_found"}
    assert listed == []
    assert isinstance(await client.webhooks.retrieve(created.id), WebhookEndpoint)


async def test_a_key_without_the_scope_may_not(
    http: httpx.AsyncClient, tenant: Tenant, owner: DictConnection
) -> None:
    key = create_api_key(
        owner,
        tenant_id=tenant.id,
        name="reader",
        pepper=PEPPER.encode(),
        scopes=["infer:write", "jobs:read"],
    )

    answer = await http.get(PATH, headers={"Authorization": f"Bearer {key}"})

    assert answer.status_code == 403


async def test_ids_of_other_things_are_not_there(http: httpx.AsyncClient) -> None:
    for name in ("whk_x", "job_" + "0" * 32, "whk_" + "0" * 32, "whk_" + "0" * 33):
        assert (await http.get(f"{PATH}/{name}")).status_code == 404
