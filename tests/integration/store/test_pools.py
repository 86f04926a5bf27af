"""What a failure leaves on a connection of the pool."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest
from psycopg.errors import DivisionByZero

from store.pools import AsyncPool, as_tenant, async_pool
from tests.integration.store.conftest import AsApi

NUM_BEFORE_PREPARED = 5  # psycopg's threshold


async def _ask(pool: AsyncPool, divisor: int) -> int:
    async with as_tenant(pool, uuid4()) as connection:
        await connection.execute("SELECT 1 / %s", (divisor,))
        cursor = await connection.execute("SELECT 7 AS seven")
        row = await cursor.fetchone()
    assert row is not None
    return int(row["seven"])


@pytest.mark.parametrize("num_before", range(NUM_BEFORE_PREPARED + 2))
def test_a_failure_spoils_no_statement_that_came_behind_it(as_api: AsApi, num_before: int) -> None:
    async def ask() -> list[int]:
        async with async_pool(as_api.urls.api, application_name="test", max_size=1) as pool:
            for _ in range(num_before):
                await _ask(pool, 1)
            with pytest.raises(DivisionByZero):
                await _ask(pool, 0)
            return [await _ask(pool, 1) for _ in range(2)]

    assert asyncio.run(ask()) == [7, 7]
