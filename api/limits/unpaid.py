"""Bounds what tenants make that no credit pays for and that is kept: batches, which may all be
cancelled, and samples of webhooks.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from enum import StrEnum
from functools import partial
from uuid import UUID

from redis.asyncio import Redis

from api.limits.answers import unpaid_refusal
from api.limits.counters import Counters
from tasks.errors import ServiceError
from tasks.keys import unpaid
from tasks.limits import Amounts, Limits

HOUR_S = 3_600.0


class Unpaid(StrEnum):
    """What is bounded. In keys of Redis and in words of errors."""

    BATCHES = "batches"
    WEBHOOK_TESTS = "webhook-tests"


class UnpaidLimits:
    """So many of each kind an hour, of each tenant. One an API process."""

    def __init__(self, redis: Redis, hourly: Mapping[Unpaid, int]) -> None:
        self._kinds = {
            what: (
                Counters(redis, key=partial(unpaid, what=what)),
                Limits(requests=limit, period_s=HOUR_S),
            )
            for what, limit in hourly.items()
        }

    @asynccontextmanager
    async def one(self, tenant_id: UUID, what: Unpaid) -> AsyncIterator[None]:
        """Counts one thing that the block makes; not if it is refused. Raises RateLimitExceeded."""
        counters, limits = self._kinds[what]
        answer = await counters.take(tenant_id, limits, Amounts(1, 0))
        if answer.refused_by is not None:
            assert answer.standing.requests is not None
            raise unpaid_refusal(answer.standing.requests, what.replace("-", " "))
        try:
            yield
        except ServiceError:  # whatever else it was, it may have been made
            await counters.take(tenant_id, limits, Amounts(-1, 0))
            raise
