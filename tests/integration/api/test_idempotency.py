from __future__ import annotations

import asyncio

import httpx

from store.pools import DictConnection
from tests.integration.api.conftest import Tenant

BODY = {"model": "tiny", "prompt": "hello", "max_tokens": 4}


async def test_fifty_concurrent_posts_with_one_key_make_one_job(
    http: httpx.AsyncClient, owner: DictConnection
) -> None:
    answers = await asyncio.gather(*(_post(http, "k") for _ in range(50)))

    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    replayed = [answer.headers.get("idempotency-replayed") for answer in answers]
    assert sorted(map(str, replayed)) == ["None"] + ["true"] * 49
    assert _counts(owner) == (1, 1)


async def test_same_key_with_another_body_is_refused(
    http: httpx.AsyncClient, owner: DictConnection
) -> None:
    await _post(http, "k")

    other = await http.post(
        "/v1/jobs", json=BODY | {"max_tokens": 5}, headers={"Idempotency-Key": "k"}
    )

    assert other.status_code == 422
    assert other.json()["error"]["code"] == "idempotency_key_reused"
    assert _counts(owner) == (1, 1)


async def test_quoted_and_bare_keys_and_the_order_of_fields_are_the_same(
    http: httpx.AsyncClient,
) -> None:
    first = await _post(http, "k")

    second = await http.post(
        "/v1/jobs",
        json=dict(reversed(BODY.items())),
        headers={"Idempotency-Key": '"k"'},
    )

    assert second.json()["id"] == first.json()["id"]


async def test_two_tenants_may_use_the_same_key(
    http: httpx.AsyncClient, api_url: str, other_tenant: Tenant
) -> None:
    first = await _post(http, "k")

    async with httpx.AsyncClient(base_url=api_url, headers=other_tenant.headers) as other:
        second = await _post(other, "k")

    assert second.status_code == 202
    assert second.json()["id"] != first.json()["id"]


async def _post(http: httpx.AsyncClient, key: str) -> httpx.Response:
    return await http.post("/v1/jobs", json=BODY, headers={"Idempotency-Key": key})


def _counts(owner: DictConnection) -> tuple[int, int]:
    row = owner.execute(
        "SELECT (SELECT count(*) FROM jobs) AS jobs,"
        " (SELECT count(*) FROM reservations) AS reservations"
    ).fetchone()
    assert row is not None
    return row["jobs"], row["reservations"]
