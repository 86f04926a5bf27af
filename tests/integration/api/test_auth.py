from __future__ import annotations

import asyncio
from datetime import timedelta
from enum import StrEnum
from types import SimpleNamespace
from typing import cast

import httpx
import pytest

from api.auth import Authenticator, require
from api.settings import KEY_NEGATIVE_TTL_S, KEY_POSITIVE_TTL_S
from cli.stack.database import DatabaseUrls
from store.api_keys import Scope, generate, parse_key_id
from store.pools import DictConnection, async_pool
from store.tenants import ApiKey, create_api_key, revoke_api_key, set_scopes
from tasks.errors import InvalidApiKey, PermissionDenied
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


class _LaterScope(StrEnum):
    MODELS_WRITE = "models:write"


def test_a_key_for_all_may_do_what_no_release_knows_yet(
    owner: DictConnection, tenant: Tenant
) -> None:
    create_api_key(owner, tenant_id=tenant.id, name="whole", pepper=PEPPER.encode())
    row = owner.execute("SELECT scopes FROM api_keys WHERE name = 'whole'").fetchone()
    assert row is not None
    later = cast(Scope, _LaterScope.MODELS_WRITE)

    require(_holding(row["scopes"]), Scope.JOBS_READ)
    require(_holding(row["scopes"]), later)
    for scope in (Scope.WEBHOOKS_WRITE, later):
        with pytest.raises(PermissionDenied, match=scope.value):
            require(_holding(["jobs:read"]), scope)


def _holding(scopes: list[str]) -> ApiKey:
    return cast(ApiKey, SimpleNamespace(scopes=frozenset(scopes)))


async def test_a_changed_scope_counts_within_30_s(
    database: DatabaseUrls, owner: DictConnection, tenant: Tenant
) -> None:
    now = 1000.0
    async with async_pool(database.api, application_name="test", max_size=1) as pool:
        authenticator = Authenticator(pool, {1: PEPPER.encode()}, clock=lambda: now)
        header = tenant.headers["Authorization"]
        require(await authenticator.authenticate(header), Scope.INFER_WRITE)

        assert set_scopes(owner, parse_key_id(tenant.api_key) or "", ["jobs:read"])
        now += 30.0

        with pytest.raises(PermissionDenied):
            require(await authenticator.authenticate(header), Scope.INFER_WRITE)


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


async def test_unknown_id_is_asked_for_again_soon_and_a_known_one_late(
    database: DatabaseUrls, owner: DictConnection, tenant: Tenant
) -> None:
    now = [0.0]
    async with async_pool(database.api, application_name="test", max_size=1) as pool:
        authenticator = Authenticator(pool, {1: PEPPER.encode()}, clock=lambda: now[0])
        key = create_api_key(owner, tenant_id=tenant.id, name="x", pepper=PEPPER.encode())
        key_id = parse_key_id(key)
        row = owner.execute("DELETE FROM api_keys WHERE key_id = %s RETURNING *", (key_id,))
        columns = row.fetchone()
        assert columns is not None
        with pytest.raises(InvalidApiKey):
            await authenticator.authenticate(f"Bearer {key}")

        names = ", ".join(columns)
        marks = ", ".join(["%s"] * len(columns))
        owner.execute(
            f"INSERT INTO api_keys ({names}) VALUES ({marks})",
            list(columns.values()),
        )
        now[0] = KEY_NEGATIVE_TTL_S - 0.1
        with pytest.raises(InvalidApiKey):
            await authenticator.authenticate(f"Bearer {key}")
        now[0] = KEY_NEGATIVE_TTL_S + 0.1
        assert (await authenticator.authenticate(f"Bearer {key}")).key_id == key_id

        owner.execute("UPDATE api_keys SET revoked_at = now() WHERE key_id = %s", (key_id,))
        now[0] += KEY_POSITIVE_TTL_S - 0.1
        await authenticator.authenticate(f"Bearer {key}")
        now[0] += 0.2
        with pytest.raises(InvalidApiKey):
            await authenticator.authenticate(f"Bearer {key}")


async def test_flood_of_unknown_ids_pushes_no_known_key_out(
    database: DatabaseUrls, tenant: Tenant
) -> None:
    async with async_pool(database.api, application_name="test", max_size=1) as pool:
        authenticator = Authenticator(pool, {1: PEPPER.encode()}, max_keys=5)
        await authenticator.authenticate(f"Bearer {tenant.api_key}")

        for _ in range(20):
            with pytest.raises(InvalidApiKey):
                await authenticator.authenticate(f"Bearer {generate().text}")

        assert len(authenticator._unknown) == 5
        assert list(authenticator._known) == [parse_key_id(tenant.api_key)]


async def test_unknown_ids_have_few_questions_under_way(
    database: DatabaseUrls, owner: DictConnection
) -> None:
    async with async_pool(database.api, application_name="test", max_size=20) as pool:
        authenticator = Authenticator(pool, {1: PEPPER.encode()}, max_lookups=2)
        with owner.transaction():
            owner.execute("LOCK TABLE api_keys")
            asking = [
                asyncio.create_task(authenticator.authenticate(f"Bearer {generate().text}"))
                for _ in range(10)
            ]
            assert await _num_blocked(owner, at_least=2) == 2
        answers = await asyncio.gather(*asking, return_exceptions=True)

    assert [type(answer) for answer in answers] == [InvalidApiKey] * 10


async def _num_blocked(owner: DictConnection, *, at_least: int) -> int:
    """Statements that wait for a lock, once there are as many."""
    async with asyncio.timeout(10):
        while True:
            row = owner.execute("SELECT count(*) AS n FROM pg_locks WHERE NOT granted").fetchone()
            if row and row["n"] >= at_least:
                num_blocked: int = row["n"]
                return num_blocked
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("is_known", [False, True])
async def test_all_who_wait_for_the_same_key_share_one_question(
    database: DatabaseUrls, owner: DictConnection, tenant: Tenant, is_known: bool
) -> None:
    now = 0.0
    header = f"Bearer {tenant.api_key}"
    async with async_pool(database.api, application_name="test", max_size=20) as pool:
        authenticator = Authenticator(pool, {1: PEPPER.encode()}, clock=lambda: now)
        if is_known:
            await authenticator.authenticate(header)
            now += KEY_POSITIVE_TTL_S + 1
        with owner.transaction():
            owner.execute("LOCK TABLE api_keys")
            asking = [asyncio.create_task(authenticator.authenticate(header)) for _ in range(10)]
            assert await _num_blocked(owner, at_least=1) == 1
            asking[0].cancel()  # the one that asked: the others still get their answer
            await asyncio.wait(asking[:1])
        answers = await asyncio.gather(*asking[1:])

    assert {key.tenant_id for key in answers} == {tenant.id}
    assert not authenticator._asking


async def test_a_request_seems_to_be_the_tenants_whose_key_was_good_before(
    database: DatabaseUrls, owner: DictConnection, tenant: Tenant
) -> None:
    now = 0.0
    async with async_pool(database.api, application_name="test", max_size=1) as pool:
        authenticator = Authenticator(pool, {1: PEPPER.encode()}, clock=lambda: now)
        header = f"Bearer {tenant.api_key}"
        assert authenticator.presumed_tenant(header) is None
        await authenticator.authenticate(header)

        assert authenticator.presumed_tenant(header) == tenant.id
        now += KEY_POSITIVE_TTL_S + 1
        assert authenticator.presumed_tenant(header) == tenant.id
        assert authenticator.presumed_tenant(f"{header[:-1]}?") is None
        for other in (None, "", "Bearer", "Basic x", f"Bearer {generate().text}"):
            assert authenticator.presumed_tenant(other) is None
