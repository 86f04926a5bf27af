"""What tenants have used: counted in Redis for all replicas, and while Redis is away here.

So an outage neither stops a tenant nor lets it loose: each replica then lets through as much as all
of them should together, and begins with nothing used.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from uuid import UUID

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from api import metrics
from tasks.keys import rate_limits
from tasks.limits import TAKE_SCRIPT, Amounts, Answer, Limits, parse_answer, take, take_arguments

log = structlog.get_logger(__name__)

PAUSE_S = 1.0  # between two looks whether Redis is back
MAX_TENANTS = 10_000  # counted in this process; those that asked longest ago begin anew


class Counters:
    """One an API process; used on its event loop alone."""

    def __init__(
        self,
        redis: Redis,
        clock: Callable[[], float] = time.monotonic,
        key: Callable[[UUID], str] = rate_limits,
    ) -> None:
        self._key = key
        self._script = redis.register_script(TAKE_SCRIPT)
        self._clock = clock
        self._local = LocalCounters(clock)
        self._is_away = False
        self._paused_until = 0.0  # while it is away

    @property
    def is_away(self) -> bool:
        """Whether Redis failed the last time it was asked."""
        return self._is_away

    async def take(self, tenant_id: UUID, limits: Limits, amounts: Amounts) -> Answer:
        """As tasks.limits.take. One round trip; never raises for Redis."""
        if self._may_ask():
            try:
                return await self._take_shared(tenant_id, limits, amounts)
            except (RedisError, OSError) as error:
                self._note_away(error)
        metrics.limits_counted_locally.inc()
        return self._local.take(tenant_id, limits, amounts)

    def _may_ask(self) -> bool:
        """While Redis is away one request each pause looks whether it is back; no other waits."""
        if not self._is_away:
            return True
        if self._clock() < self._paused_until:
            return False
        self._paused_until = self._clock() + PAUSE_S
        return True

    async def _take_shared(self, tenant_id: UUID, limits: Limits, amounts: Amounts) -> Answer:
        reply = await self._script(
            keys=[self._key(tenant_id)], args=take_arguments(limits, amounts)
        )
        if self._is_away:
            self._is_away = False
            log.info("rate_limits_shared_again")
        return parse_answer(limits, reply)

    def _note_away(self, error: Exception) -> None:
        self._paused_until = self._clock() + PAUSE_S
        if not self._is_away:
            self._is_away = True
            log.warning("rate_limits_counted_locally", error=type(error).__name__)


class LocalCounters:
    """The same in memory, for as many tenants as fit."""

    def __init__(self, clock: Callable[[], float], max_tenants: int = MAX_TENANTS) -> None:
        self._clock = clock
        self._max_tenants = max_tenants
        self._used: OrderedDict[UUID, tuple[float, Amounts]] = OrderedDict()

    def take(self, tenant_id: UUID, limits: Limits, amounts: Amounts) -> Answer:
        """As tasks.limits.take."""
        now = self._clock()
        at, used = self._used.get(tenant_id, (now, Amounts(0, 0)))
        answer = take(limits, used, now - at, amounts)
        self._used[tenant_id] = now, answer.standing.used
        self._used.move_to_end(tenant_id)
        while len(self._used) > self._max_tenants:
            self._used.popitem(last=False)
        return answer
