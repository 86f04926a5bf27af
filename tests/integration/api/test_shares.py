"""What one tenant may take of an API process, as its services are put together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress

import httpx
import pytest

from api.limits.places import Places
from api.services import open_services
from api.settings import SPARE_REQUESTS, ApiSettings
from cli.stack.database import DatabaseUrls
from store.pools import DictConnection, connect
from store.tenants import create_api_key
from tasks.errors import RateLimitExceeded
from tasks.ids import parse_job_id
from tests.integration.api.conftest import PEPPER, Tenant, serve_api
from tests.integration.api.readers import BODY, create_job
from tests.support.caller import new_caller
from tests.support.waiting import until

_LOCK_JOB = "SELECT FROM jobs WHERE id = %s FOR UPDATE"
_COUNT_HELD_UP = """
SELECT count(DISTINCT pid) AS n FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE datname = current_database() AND NOT granted
"""

pytestmark = pytest.mark.usefixtures("environment", "catalog")


class JobLock:
    """Holds up whatever changes a job."""

    def __init__(self, holder: DictConnection, watcher: DictConnection) -> None:
        self._holder = holder
        self._watcher = watcher

    @contextmanager
    def on(self, job_id: str) -> Iterator[None]:
        with self._holder.transaction():
            self._holder.execute(_LOCK_JOB, (parse_job_id(job_id),))
            yield

    @property
    def num_held_up(self) -> int:
        """Statements that wait; each has a connection."""
        row = self._watcher.execute(_COUNT_HELD_UP).fetchone()
        assert row is not None
        num: int = row["n"]
        return num


@pytest.fixture
def lock(owner: DictConnection, database: DatabaseUrls) -> Iterator[JobLock]:
    with connect(database.owner, application_name="test-watcher") as watcher:
        yield JobLock(owner, watcher)


@asynccontextmanager
async def serve(tenant: Tenant) -> AsyncIterator[httpx.AsyncClient]:
    """An API that has the settings of the moment, and a client of the tenant."""
    async with (
        serve_api() as url,
        httpx.AsyncClient(
            base_url=url, headers=tenant.headers, timeout=30, trust_env=False
        ) as client,
    ):
        yield client


# Connections of the database ----------------------------------------------------------------------


async def test_a_tenant_whose_statements_are_held_up_takes_its_share_and_another_one_reads(
    lock: JobLock, tenant: Tenant, other_tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLRACE_DATABASE_POOL_SIZE", "5")
    async with serve(tenant) as client:
        job_id = await create_job(client)
        with lock.on(job_id):
            url = f"/v1/jobs/{job_id}/cancel"
            cancels = [asyncio.create_task(client.post(url)) for _ in range(8)]
            await until(lambda: lock.num_held_up >= 2)

            read = await client.get("/v1/jobs", headers=other_tenant.headers)
            num_held_up = lock.num_held_up
        answers = await asyncio.gather(*cancels)

    assert (read.status_code, num_held_up) == (200, 2)
    assert {answer.status_code for answer in answers} == {200}


async def test_keys_admission_and_health_do_not_wait_for_the_connections_of_tenants(
    lock: JobLock, tenant: Tenant, other_tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLRACE_DATABASE_POOL_SIZE", "1")
    async with serve(tenant) as client:
        job_id = await create_job(client)
        with lock.on(job_id):
            cancel = asyncio.create_task(client.post(f"/v1/jobs/{job_id}/cancel"))
            await until(lambda: lock.num_held_up == 1)  # on the only connection of its pool

            created = await client.post("/v1/jobs", json=BODY, headers=other_tenant.headers)
            health = await client.get("/readyz")
            num_held_up = lock.num_held_up
        cancelled = await cancel

    assert num_held_up == 1
    assert created.status_code == 202
    assert health.json()["checks"]["postgres"] == "ok"
    assert cancelled.status_code == 200


# Open requests ------------------------------------------------------------------------------------


async def test_all_keys_of_a_tenant_wait_no_more_than_the_tenant_may(
    owner: DictConnection, tenant: Tenant, other_tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLRACE_MAX_TENANT_WAITING", "2")
    monkeypatch.setenv("MILLRACE_MAX_KEY_WAITING", "1")
    second, third = (new_key(owner, tenant) for _ in range(2))
    async with serve(tenant) as client, AsyncExitStack() as streams:
        url = f"/v1/jobs/{await create_job(client)}/events"
        created = await client.post("/v1/jobs", json=BODY, headers=other_tenant.headers)
        others_url = f"/v1/jobs/{created.json()['id']}/events"

        answers = [
            await streams.enter_async_context(client.stream("GET", path, headers=caller.headers))
            for path, caller in (
                (url, tenant),
                (url, second),
                (url, third),
                (others_url, other_tenant),
            )
        ]
        refusal = await answers[2].aread()

    assert [answer.status_code for answer in answers] == [200, 200, 429, 200]
    assert answers[2].headers["retry-after"] == "1"
    assert b"Your organization has 2 requests" in refusal


def new_key(owner: DictConnection, tenant: Tenant) -> Tenant:
    """The same tenant with another key."""
    key = create_api_key(owner, tenant_id=tenant.id, name="other", pepper=PEPPER.encode())
    return Tenant(tenant.id, key)


async def test_a_tenant_has_at_most_three_quarters_of_what_a_process_can_carry() -> None:
    async with open_services(ApiSettings(), max_connections=12) as small:
        assert [num_places(small.open_requests), num_places(small.waiting_requests)] == [9, 9]

    settings = ApiSettings(max_tenant_waiting=3, max_key_waiting=3)
    async with open_services(settings, max_connections=20_000) as large:
        assert num_places(large.open_requests) == 3 + SPARE_REQUESTS
        assert num_places(large.waiting_requests) == 3


def num_places(places: Places) -> int:
    """For the only key of a tenant."""
    caller, num = new_caller(), 0
    with ExitStack() as held, suppress(RateLimitExceeded):
        while True:
            held.enter_context(places.take(caller))
            num += 1
    return num
