"""Whether Postgres, Redis and workers are there. One look at a time serves all who ask meanwhile:
they need no key, and connections are admission's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeVar

from psycopg import Error as DatabaseError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from store.leases import live_workers
from store.pools import AsyncPool

CHECK_TIMEOUT_S = 2.0

T = TypeVar("T")
# What is live, or a word for why nobody knows.
Workers = list[dict[str, Any]] | str


class SharedLook(Generic[T]):
    """On one event loop. A look goes on when whoever asked for it first has gone."""

    def __init__(self, look: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._look = look
        self._task: asyncio.Task[T] | None = None

    async def __call__(self) -> T:
        """What the look at work finds, or a new one."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._look())
        return await asyncio.shield(self._task)


def look_at_stores(pool: AsyncPool, redis: Redis) -> SharedLook[tuple[Workers, object]]:
    """Live workers, and Redis' answer or a word for why there is none. Both side by side."""

    async def look() -> tuple[Workers, object]:
        workers, answer = await asyncio.gather(_check(live_workers(pool)), _check(redis.ping()))
        return workers, answer

    return SharedLook(look)


async def _check(question: Awaitable[T]) -> T | str:
    """The answer, or a word for why there is none."""
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            return await question
    except TimeoutError:
        return "timeout"
    except (DatabaseError, RedisError, OSError):
        return "unavailable"
