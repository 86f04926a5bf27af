"""Bounds of what no credit pays for, in Redis of each version at hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

import pytest
from redis.asyncio import Redis

from api.limits.unpaid import Unpaid, UnpaidLimits
from api.services import redis_client
from tasks.errors import InvalidRequest, RateLimitExceeded
from tasks.ids import uuid7
from tasks.keys import rate_limits, unpaid
from tests.integration.tasks.conftest import RedisServer

HOURLY = {Unpaid.BATCHES: 2, Unpaid.WEBHOOK_TESTS: 1}


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[Redis]:
    async with redis_client(redis_server.server.url) as client:
        yield client


@pytest.fixture
def limits(redis: Redis) -> UnpaidLimits:
    return UnpaidLimits(redis, HOURLY)


async def _make(limits: UnpaidLimits, tenant_id: UUID, what: Unpaid) -> None:
    async with limits.one(tenant_id, what):
        pass


async def test_each_kind_of_each_tenant_is_bounded_by_itself(limits: UnpaidLimits) -> None:
    tenant, other = uuid7(), uuid7()
    for _ in range(2):
        await _make(limits, tenant, Unpaid.BATCHES)

    with pytest.raises(RateLimitExceeded) as refused:
        await _make(limits, tenant, Unpaid.BATCHES)
    await _make(limits, tenant, Unpaid.WEBHOOK_TESTS)
    await _make(limits, other, Unpaid.BATCHES)
    with pytest.raises(RateLimitExceeded, match="may make 1 webhook tests an hour"):
        await _make(limits, tenant, Unpaid.WEBHOOK_TESTS)

    assert "you may make 2 batches an hour, and none is left now" in str(refused.value)
    assert 1_790 <= int(refused.value.headers["Retry-After"]) <= 1_800
    assert refused.value.headers["x-should-retry"] == "true"


async def test_what_was_not_made_after_all_does_not_count(limits: UnpaidLimits) -> None:
    tenant = uuid7()
    for _ in range(3):
        with pytest.raises(InvalidRequest):
            async with limits.one(tenant, Unpaid.BATCHES):
                raise InvalidRequest("there is no such file")

    for _ in range(2):
        await _make(limits, tenant, Unpaid.BATCHES)
    with pytest.raises(RateLimitExceeded):
        await _make(limits, tenant, Unpaid.BATCHES)


async def test_what_may_have_been_made_counts(limits: UnpaidLimits) -> None:
    """The answer was lost, the client has left: a row may stand all the same."""
    tenant = uuid7()
    for error in (ConnectionError, asyncio.CancelledError):
        with pytest.raises(error):
            async with limits.one(tenant, Unpaid.BATCHES):
                raise error

    with pytest.raises(RateLimitExceeded):
        await _make(limits, tenant, Unpaid.BATCHES)


async def test_rate_limits_of_requests_are_counted_apart(
    limits: UnpaidLimits, redis: Redis
) -> None:
    tenant = uuid7()

    await _make(limits, tenant, Unpaid.BATCHES)

    assert await redis.exists(unpaid(tenant, Unpaid.BATCHES)) == 1
    assert await redis.exists(rate_limits(tenant)) == 0
    assert 0 < await redis.ttl(unpaid(tenant, Unpaid.BATCHES)) <= 1_801
