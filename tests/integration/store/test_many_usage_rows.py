"""Reports of a tenant with many jobs read each row once, and a page of them reads a page."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from cli.stack.database import DatabaseUrls
from store.job_usage import Mark, list_job_usage
from store.pools import AsyncPool, DictConnection, async_pool
from store.usage_buckets import BucketQuery, cost_buckets, usage_buckets
from tests.integration.store.writes import another_tenant
from tests.support.costs import FLUSH, num_pages
from tests.support.jobs import Jobs

NUM_JOBS = 200_000
START = datetime(2026, 3, 1, tzinfo=UTC)
MONTH = timedelta(days=31)

MAX_SHARE = 1.2  # of the table's pages: a report may read an index as well, but no row twice
PAGES_OF_A_PAGE = 100  # for a thousand jobs

_PRICES = """
INSERT INTO prices (version, model_name, service_tier, input_micros, cached_micros, output_micros)
SELECT 1, model, tier, 2000000, 200000, 4000000
FROM unnest('{a,b,c}'::text[]) model, unnest('{priority,default,flex,batch}'::text[]) tier
"""

# Every tenth is another tenant's.
_USAGE = """
INSERT INTO usage (job_id, tenant_id, api_key_id, model, service_tier, status, payer, input_tokens,
    cached_tokens, output_tokens, price_version, amount_micros, currency, created_at, end_user)
SELECT gen_random_uuid(), CASE WHEN n % 10 = 0 THEN %(other)s ELSE %(tenant)s END,
    'key' || n % 5, (ARRAY['a', 'b', 'c'])[1 + n % 3],
    (ARRAY['priority', 'default', 'flex', 'batch'])[1 + n % 4], 'completed', 'tenant', 1000, 300,
    200 + n % 7, 1, cost_micros(1000, 300, 200 + n % 7, 2000000, 200000, 4000000), 'USD',
    %(start)s + n * (%(length)s / %(num)s), 'user' || n % 50
FROM generate_series(0, %(num)s * 10 / 9) AS n
""".replace("n % ", "n %% ")

Ask = Callable[[AsyncPool, UUID], Awaitable[list[dict[str, Any]]]]


@pytest.fixture
def busy(jobs: Jobs) -> UUID:
    """A tenant with a busy month behind it."""
    with jobs.connect() as owner:
        owner.execute("INSERT INTO price_books (version, currency, sha256) VALUES (1, 'USD', '')")
        owner.execute(_PRICES)
        owner.execute("SET statement_timeout = 0")
        owner.execute(
            _USAGE,
            {
                "tenant": jobs.tenant_id,
                "other": another_tenant(jobs),
                "start": START,
                "length": MONTH * 9 / 10,
                "num": NUM_JOBS,
            },
        )
        owner.execute("ANALYZE usage")
    return jobs.tenant_id


def _month(*groups: str) -> BucketQuery:
    return BucketQuery(start=START, end=START + MONTH, width=timedelta(days=1), group_by=groups)


@dataclass(frozen=True, slots=True)
class _Asked:
    num_rows: int
    num_pages: int


async def _asked(urls: DatabaseUrls, ask: Ask, tenant: UUID, owner: DictConnection) -> _Asked:
    """The second time: by then what is read of the catalog is cached."""
    async with async_pool(urls.api, application_name="test-api", max_size=1) as pool:
        await ask(pool, tenant)
        before = await _pages(pool, owner)
        rows = await ask(pool, tenant)
        return _Asked(len(rows), await _pages(pool, owner) - before)


async def _pages(pool: AsyncPool, owner: DictConnection) -> int:
    """What the pool's one connection has touched."""
    async with pool.connection() as connection:
        await connection.execute(FLUSH.encode())
        return num_pages(owner, connection.info.backend_pid)


def test_a_month_of_many_jobs_is_read_once(database: DatabaseUrls, jobs: Jobs, busy: UUID) -> None:
    middle = Mark(START + MONTH / 2)
    asks: dict[str, Ask] = {
        "usage": lambda pool, id_: usage_buckets(pool, id_, _month()),
        "usage_by_three": lambda pool, id_: usage_buckets(
            pool, id_, _month("model", "service_tier", "api_key_id")
        ),
        "costs": lambda pool, id_: cost_buckets(pool, id_, _month()),
        "line_items": lambda pool, id_: cost_buckets(pool, id_, _month("line_item", "api_key_id")),
        "a_page_of_jobs": lambda pool, id_: list_job_usage(
            pool, id_, after=middle, end=START + MONTH, limit=1_000
        ),
    }

    with jobs.connect() as owner:
        table = owner.execute("SELECT pg_relation_size('usage') / 8192 AS pages").fetchone()
        assert table is not None
        for name, ask in asks.items():
            found = asyncio.run(_asked(database, ask, busy, owner))
            most = PAGES_OF_A_PAGE if name == "a_page_of_jobs" else MAX_SHARE * table["pages"]

            assert found.num_rows > 0, name
            assert 0 < found.num_pages <= most, name
