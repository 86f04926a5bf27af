from __future__ import annotations

from datetime import timedelta

import httpx
import pytest

from api.auth import Authenticator
from cli.stack.database import DatabaseUrls
from store.api_keys import generate, parse_key_id
from store.pools import DictConnection, async_pool
from store.tenants import create_api_key, revoke_api_key
from tasks.errors import InvalidApiKey
from tests.integration.api.conftest import PEPPER, Tenant


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer x", "Basic abc", "Bearer mlr_live_x", "Bearer \u00e9"],
)
async def test_request_without_a_key_of_ours_is_refused(api_url: str, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}

    async with httpx.AsyncClient(base_url=api_url) as client:
        answer = await client.get("/v1/models", headers=headers)  # type: ignore[arg-type]

    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert answer.headers["www-authenticate"] == "Bearer"


async def test_well_formed_key_that_nobody_has_is_refused(api_url: str) -> None:
    headers = {"Authorization": f"Bearer {generate().text}"}

    async with httpx.AsyncClient(base_url=api_url, headers=headers) as client:
        assert (await client.get("/v1/models")).status_code == 401


async def test_key_hashed_with_another_pepper_is_refused(
    api_url: str, owner: DictConnection, tenant: Tenant
) -> None:
    key = create_api_key(owner, tenant_id=tenant.id, name="x", pepper=b"another")

    async with httpx.AsyncClient(
        base_url=api_url, headers={"Authorization": f"Bearer {key}"}
    ) as client:
        assert (await client.get("/v1/models")).status_code == 401


async def test_expired_key_is_refused(api_url: str, owner: DictConnection, tenant: Tenant) -> None:
    key = create_api_key(
        owner, tenant_id=tenant.id, name="x", pepper=PEPPER.encode(), ttl=timedelta(seconds=-1)
    )

    async with httpx.AsyncClient(
        base_url=api_url, headers={"Authorization": f"Bearer {key}"}
    ) as client:
        assert (await client.get("/v1/models")).status_code == 401


@pytest.mark.parametrize(
    ("request_line", "scope"),
    [
        ("POST /v1/jobs", "jobs:read"),
        (f"POST /v1/jobs/job_{'0' * 32}/cancel", "jobs:read"),
        ("GET /v1/jobs", "infer:write"),
        (f"GET /v1/jobs/job_{'0' * 32}", "infer:write"),
        (f"GET /v1/jobs/job_{'0' * 32}/events", "usage:read"),
        ("GET /v1/usage", "jobs:read"),
    ],
)
async def test_key_without_the_scope_is_refused(
    api_url: str, owner: DictConnection, tenant: Tenant, request_line: str, scope: str
) -> None:
    method, path = request_line.split()
    key = create_api_key(
        owner, tenant_id=tenant.id, name="x", pepper=PEPPER.encode(), scopes=[scope]
    )

    async with httpx.AsyncClient(
        base_url=api_url, headers={"Authorization": f"Bearer {key}"}
    ) as client:
        answer = await client.request(method, path, json={})

    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "permission_denied"


async def test_revoked_key_is_refused_within_30_s(
    database: DatabaseUrls, owner: DictConnection, tenant: Tenant
) -> None:
    now = 1000.0
    pool = async_pool(database.api, application_name="test", max_size=1)
    await pool.open()
    try:
        authenticator = Authenticator(pool, {1: PEPPER.encode()}, clock=lambda: now)
        header = tenant.headers["Authorization"]
        await authenticator.authenticate(header)

        assert revoke_api_key(owner, parse_key_id(tenant.api_key) or "")

        await authenticator.authenticate(header)  # still cached
        now += 30.0
        with pytest.raises(InvalidApiKey):
            await authenticator.authenticate(header)
    finally:
        await pool.close()
