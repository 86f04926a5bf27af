"""Webhook endpoints: made, changed, tried out, and nobody else's."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import pytest

from api.schemas.webhooks import DeliveryShown, WebhookShown
from store.pools import DictConnection
from store.tenants import create_api_key
from store.webhooks import MAX_ENDPOINTS
from tests.integration.api.conftest import PEPPER, Tenant

URL = "https://example.com/hooks"


async def _create(http: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await http.post("/v1/webhooks", json={"url": URL, **fields})
    assert answer.status_code == 200, answer.text
    shown: dict[str, Any] = answer.json()
    return shown


async def test_the_secret_is_shown_once(http: httpx.AsyncClient) -> None:
    created = await _create(http, events=["response.completed"], description="mine")

    WebhookShown.model_validate(created, strict=True)
    assert len(base64.b64decode(created["secret"].removeprefix("whsec_"))) == 32
    shown = (await http.get(f"/v1/webhooks/{created['id']}")).json()
    assert shown == {name: value for name, value in created.items() if name != "secret"}
    assert shown["events"] == ["response.completed"]
    assert (await http.get("/v1/webhooks")).json()["data"] == [shown]


async def test_what_is_left_out_of_an_update_stays(http: httpx.AsyncClient) -> None:
    created = await _create(http, events=["response.completed"], description="mine")
    path = f"/v1/webhooks/{created['id']}"

    changed = (await http.post(path, json={"enabled": False, "url": f"{URL}/2"})).json()
    everything = (await http.post(path, json={"events": None})).json()

    assert (changed["enabled"], changed["url"]) == (False, f"{URL}/2")
    assert (changed["events"], changed["description"]) == (["response.completed"], "mine")
    assert everything == changed | {"events": None}
    assert (await http.post(path, json={})).json() == everything


async def test_an_endpoint_that_was_switched_off_begins_anew(
    http: httpx.AsyncClient, owner: DictConnection
) -> None:
    created = await _create(http)
    owner.execute(
        "UPDATE webhook_endpoints SET is_enabled = false, disabled_reason = 'gone',"
        " failing_since = now() - interval '2 days'"
    )

    shown = (await http.post(f"/v1/webhooks/{created['id']}", json={"enabled": True})).json()

    assert (shown["enabled"], shown["disabled_reason"]) == (True, None)
    row = owner.execute("SELECT failing_since FROM webhook_endpoints").fetchone()
    assert row == {"failing_since": None}


async def test_a_new_secret_leaves_the_old_one_for_a_day(
    http: httpx.AsyncClient, owner: DictConnection
) -> None:
    created = await _create(http)

    rotated = (await http.post(f"/v1/webhooks/{created['id']}/rotate_secret")).json()

    row = owner.execute(
        "SELECT secret, previous_secret, previous_until > now() + interval '23 hours' AS is_good"
        " FROM webhook_endpoints"
    ).fetchone()
    assert row is not None
    secrets = [created["secret"], rotated["secret"]]
    assert [base64.b64decode(text.removeprefix("whsec_")) for text in secrets] == [
        row["previous_secret"],
        row["secret"],
    ]
    assert row["is_good"]


async def test_a_test_event_can_be_listed_and_sent_again(
    http: httpx.AsyncClient, owner: DictConnection
) -> None:
    created = await _create(http)
    path = f"/v1/webhooks/{created['id']}"

    sent = [(await http.post(f"{path}/test")).json() for _ in range(3)]

    DeliveryShown.model_validate(sent[0], strict=True)
    assert (sent[0]["event_type"], sent[0]["object_id"]) == ("webhook.test", created["id"])
    first = (await http.get(f"{path}/deliveries", params={"limit": 2})).json()
    rest = (await http.get(f"{path}/deliveries", params={"after": first["last_id"]})).json()
    assert [first["has_more"], rest["has_more"]] == [True, False]
    assert {one["id"] for one in [*first["data"], *rest["data"]]} == {one["id"] for one in sent}
    owner.execute(
        "UPDATE webhook_deliveries SET delivered_at = now(), next_attempt_at = NULL, attempts = 3"
    )
    pending = f"{path}/deliveries?status=pending"
    assert (await http.get(pending)).json()["data"] == []

    again = (await http.post(f"{path}/deliveries/{sent[0]['id']}/resend")).json()

    assert (again["status"], again["attempts"]) == ("pending", 0)
    assert again["event_id"] == sent[0]["event_id"]
    assert (await http.get(pending)).json()["data"] == [again]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"url": "http://example.com"},
        {"url": "https://127.0.0.1/"},
        {"url": "https://169.254.169.254/"},
        {"url": "https://user:pass@example.com/"},
        {"url": "https://example.com:6379/"},
        {"url": URL, "events": []},
        {"url": URL, "events": ["response.deleted"]},
        {"url": URL, "secret": "whsec_mine"},
        {"url": URL, "description": "x" * 513},
    ],
)
async def test_bad_endpoints_are_refused(http: httpx.AsyncClient, body: dict[str, Any]) -> None:
    answer = await http.post("/v1/webhooks", json=body)

    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert (await http.get("/v1/webhooks")).json()["data"] == []


async def test_a_tenant_has_a_bounded_number_of_endpoints(http: httpx.AsyncClient) -> None:
    for _ in range(MAX_ENDPOINTS):
        await _create(http)

    answer = await http.post("/v1/webhooks", json={"url": URL})

    assert answer.status_code == 400
    assert len((await http.get("/v1/webhooks")).json()["data"]) == MAX_ENDPOINTS


async def test_a_deleted_endpoint_is_gone_with_its_deliveries(
    http: httpx.AsyncClient, owner: DictConnection
) -> None:
    created = await _create(http)
    path = f"/v1/webhooks/{created['id']}"
    await http.post(f"{path}/test")

    deleted = await http.delete(path)

    assert deleted.json() == {"id": created["id"], "object": "webhook_endpoint", "deleted": True}
    assert (await http.delete(path)).status_code == 404
    assert owner.execute("SELECT 1 FROM webhook_deliveries").fetchall() == []


async def test_others_endpoints_are_not_there(
    http: httpx.AsyncClient, api_url: str, other_tenant: Tenant
) -> None:
    created = await _create(http)
    path = f"/v1/webhooks/{created['id']}"
    delivery = (await http.post(f"{path}/test")).json()["id"]

    async with httpx.AsyncClient(
        base_url=api_url, headers=other_tenant.headers, trust_env=False
    ) as foreign:
        answers = [
            await foreign.get(path),
            await foreign.post(path, json={"enabled": False}),
            await foreign.delete(path),
            await foreign.post(f"{path}/rotate_secret"),
            await foreign.post(f"{path}/test"),
            await foreign.get(f"{path}/deliveries"),
            await foreign.post(f"{path}/deliveries/{delivery}/resend"),
        ]
        mine = (await foreign.post("/v1/webhooks", json={"url": URL})).json()["id"]
        answers.append(await foreign.post(f"/v1/webhooks/{mine}/deliveries/{delivery}/resend"))
        listed = (await foreign.get("/v1/webhooks")).json()["data"]

    assert {answer.status_code for answer in answers} == {404}
    assert {answer.json()["error"]["code"] for answer in answers} == {"webhook_not_found"}
    assert [one["id"] for one in listed] == [mine]
    assert (await http.get(path)).json()["enabled"]


async def test_a_key_without_the_scope_may_not(
    http: httpx.AsyncClient, api_url: str, tenant: Tenant, owner: DictConnection
) -> None:
    key = create_api_key(
        owner,
        tenant_id=tenant.id,
        name="reader",
        pepper=PEPPER.encode(),
        scopes=["infer:write", "jobs:read"],
    )

    answer = await http.get("/v1/webhooks", headers={"Authorization": f"Bearer {key}"})

    assert answer.status_code == 403


async def test_ids_of_other_things_are_not_there(http: httpx.AsyncClient) -> None:
    for name in ("whk_x", "job_" + "0" * 32, "whk_" + "0" * 32, "whk_" + "0" * 33):
        assert (await http.get(f"/v1/webhooks/{name}")).status_code == 404
