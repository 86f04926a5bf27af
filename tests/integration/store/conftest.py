"""A database, a tenant with jobs, the API's and a worker's way in."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar
from uuid import UUID

import pytest

from cli.stack.database import DatabaseUrls
from store.pools import AsyncPool, DictConnection, async_pool, connect
from tests.integration.store.writes import lease
from tests.support.jobs import Jobs

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class AsApi:
    """Runs one question on a pool of the API's role."""

    urls: DatabaseUrls

    def __call__(self, ask: Callable[[AsyncPool], Awaitable[T]]) -> T:
        return asyncio.run(self._run(ask))

    async def _run(self, ask: Callable[[AsyncPool], Awaitable[T]]) -> T:
        async with async_pool(self.urls.api, application_name="test-api", max_size=8) as pool:
            return await ask(pool)


@pytest.fixture
def jobs(database: DatabaseUrls) -> Jobs:
    return Jobs(database)


@pytest.fixture
def as_api(database: DatabaseUrls) -> AsApi:
    return AsApi(database)


@pytest.fixture
def connection(database: DatabaseUrls) -> Iterator[DictConnection]:
    """As a worker."""
    with connect(database.worker, application_name="test-worker") as opened:
        yield opened


@pytest.fixture
def worker_id(connection: DictConnection) -> UUID:
    """A worker with a live lease."""
    return lease(connection)
