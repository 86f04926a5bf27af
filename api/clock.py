"""Ids in Postgres' time: what is ordered by them, or counts back from one, mixes those of all
replicas with times that Postgres stamped. An API machine's own clock may be off.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from psycopg import Error as DatabaseError

from store.pools import AsyncPool
from tasks.ids import follow_clock

LOOK_INTERVAL_S = 30.0  # clocks that aren't kept right drift by some ms meanwhile

_NOW = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS unix_ms"


@asynccontextmanager
async def postgres_time(pool: AsyncPool) -> AsyncIterator[None]:
    """Within it this process makes ids in Postgres' time, from the first look on."""
    with suppress(DatabaseError):
        await _look(pool)
    task = asyncio.create_task(_keep_looking(pool))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _keep_looking(pool: AsyncPool) -> None:
    while True:
        await asyncio.sleep(LOOK_INTERVAL_S)
        with suppress(DatabaseError):  # an outage: what was seen last still holds
            await _look(pool)


async def _look(pool: AsyncPool) -> None:
    async with pool.connection() as connection:
        row = await (await connection.execute(_NOW)).fetchone()
    assert row is not None
    follow_clock(row["unix_ms"])
