"""Turns of tenants at something that all share: each waits behind its own, not behind others."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from uuid import UUID

from tasks.errors import RateLimitExceeded

# Another tenant is there for so long after it last entered.
PRESENCE_S = 5.0
# Those who wait behind a few of their own that take longer than this get in beside them: what fills
# the event loop are many short ones, and a long one must not hold up all of its tenant.
LONG_S = 0.05


@dataclass(slots=True)
class _Lane:
    """Of one tenant, while it has a turn or waits for one."""

    num_turns: int = 0
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)
    timer: asyncio.TimerHandle | None = None


class TenantGate:
    """How much one tenant may have under way at once. For one event loop."""

    def __init__(
        self,
        max_turns: int,
        max_wait_s: float,
        *,
        beside_others: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`beside_others`: short ones at once while other tenants are there. None: no fewer."""
        self._max_turns = max_turns
        self._max_wait_s = max_wait_s
        self._beside_others = min(beside_others or max_turns, max_turns)
        self._clock = clock
        self._lanes: dict[UUID, _Lane] = {}
        self._last: tuple[UUID, float] | None = None  # who entered last, and when
        self._last_other: tuple[UUID, float] | None = None  # of all others

    @asynccontextmanager
    async def turn(self, tenant_id: UUID) -> AsyncIterator[None]:
        """Have a turn. Raises RateLimitExceeded when none comes in time."""
        await self.enter(tenant_id)
        try:
            yield
        finally:
            self.leave(tenant_id)

    async def enter(self, tenant_id: UUID) -> None:
        """Take a turn, to be given back by `leave`. Raises RateLimitExceeded as `turn` does."""
        self._note(tenant_id)
        lane = self._lanes.setdefault(tenant_id, _Lane())
        if lane.waiting or lane.num_turns >= self._limit(tenant_id):
            await self._wait(tenant_id, lane)  # whoever lets it in counts it
        else:
            lane.num_turns += 1

    def leave(self, tenant_id: UUID) -> None:
        """Give a turn back."""
        lane = self._lanes[tenant_id]
        lane.num_turns -= 1
        self._let_in(tenant_id, lane)

    def _let_in(self, tenant_id: UUID, lane: _Lane) -> None:
        """As many as there is room for, in the order they came."""
        self._fill(lane, self._limit(tenant_id))
        self._watch(lane)
        if not lane.num_turns and not lane.waiting:
            self._lanes.pop(tenant_id, None)

    def _fill(self, lane: _Lane, limit: int) -> None:
        while lane.waiting and lane.num_turns < limit:
            waiter = lane.waiting.popleft()
            if not waiter.done():
                lane.num_turns += 1
                waiter.set_result(None)

    def _watch(self, lane: _Lane) -> None:
        """Time begins anew for those who wait."""
        if lane.timer is not None:
            lane.timer.cancel()
            lane.timer = None
        if lane.waiting and lane.num_turns < self._max_turns:
            lane.timer = asyncio.get_running_loop().call_later(LONG_S, self._let_one_more, lane)

    def _let_one_more(self, lane: _Lane) -> None:
        """Nobody has left for long."""
        self._fill(lane, lane.num_turns + 1)
        self._watch(lane)

    async def _wait(self, tenant_id: UUID, lane: _Lane) -> None:
        waiter = asyncio.get_running_loop().create_future()
        lane.waiting.append(waiter)
        if lane.timer is None:
            self._watch(lane)
        try:
            async with asyncio.timeout(self._max_wait_s):
                await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled():  # let in at the same moment
                self.leave(tenant_id)
            if isinstance(error, TimeoutError):
                message = "Too many of your requests are under way at once."
                raise RateLimitExceeded(message) from None
            raise

    def _note(self, tenant_id: UUID) -> None:
        if self._last is not None and self._last[0] != tenant_id:
            self._last_other = self._last
        self._last = (tenant_id, self._clock())

    def _limit(self, tenant_id: UUID) -> int:
        last = self._last
        other = last if last is not None and last[0] != tenant_id else self._last_other
        is_alone = other is None or self._clock() - other[1] > PRESENCE_S
        return self._max_turns if is_alone else self._beside_others
