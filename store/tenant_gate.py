"""Turns of tenants at something that all share: each waits behind its own, not behind others."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from uuid import UUID

from tasks.errors import RateLimitExceeded

# Another tenant is there for so long after it last entered.
PRESENCE_S = 5.0

# An event loop has time if it was on time, and busy for no more than this share of the time.
ON_TIME_S = 0.002  # what timers are late by anyway
MAX_BUSY = 0.5


@dataclass(frozen=True, slots=True)
class Spacing:
    """When a turn may begin beside another of the same tenant, while other tenants are there.

    Short ones go one after the other. Long ones, whatever makes them long, don't hold up the rest
    of their tenant: the next begins when the loop has time for it, looked at every `look_s`, or
    when the last has begun `max_s` ago.
    """

    look_s: float
    max_s: float


@dataclass(slots=True)
class _Lane:
    """Of one tenant, while it has a turn or waits for one."""

    num_turns: int = 0
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)
    begun_at: float = -math.inf  # the last of its turns
    may_overlap: bool = False  # the next of them
    timer: asyncio.TimerHandle | None = None


class TenantGate:
    """How much one tenant may have under way at once. For one event loop."""

    def __init__(
        self,
        max_turns: int,
        max_wait_s: float,
        *,
        spacing: Spacing | None = None,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self._max_turns = max_turns
        self._max_wait_s = max_wait_s
        self._spacing = spacing
        self._clock = clock
        self._cpu_clock = cpu_clock
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

    async def enter(self, tenant_id: UUID, *, is_patient: bool = False) -> None:
        """Take a turn, to be given back by `leave`. Raises RateLimitExceeded as `turn` does, but
        for the patient, who wait as long as it takes.
        """
        self._note(tenant_id)
        lane = self._lanes.setdefault(tenant_id, _Lane())
        if not lane.waiting and self._may_begin(tenant_id, lane):
            self._begin(lane)
        else:
            # Whoever lets it in counts it.
            await self._wait(tenant_id, lane, None if is_patient else self._max_wait_s)

    def leave(self, tenant_id: UUID) -> None:
        """Give a turn back."""
        lane = self._lanes[tenant_id]
        lane.num_turns -= 1
        self._let_in(tenant_id, lane)

    def _begin(self, lane: _Lane) -> None:
        lane.num_turns += 1
        lane.begun_at = self._clock()
        lane.may_overlap = False

    def _may_begin(self, tenant_id: UUID, lane: _Lane) -> bool:
        if not lane.num_turns:
            return True
        if lane.num_turns >= self._max_turns:
            return False
        return self._spacing is None or lane.may_overlap or self._is_alone(tenant_id)

    def _let_in(self, tenant_id: UUID, lane: _Lane) -> None:
        """As many as may begin now, in the order they came."""
        while lane.waiting and self._may_begin(tenant_id, lane):
            waiter = lane.waiting.popleft()
            if not waiter.done():
                self._begin(lane)
                waiter.set_result(None)
        self._watch(tenant_id, lane)
        if not lane.num_turns and not lane.waiting:
            self._lanes.pop(tenant_id, None)

    def _watch(self, tenant_id: UUID, lane: _Lane) -> None:
        """Look whether the loop has time for another, if no other leaves before."""
        if lane.timer is not None:
            lane.timer.cancel()
            lane.timer = None
        if self._spacing and lane.waiting and lane.num_turns < self._max_turns:
            look_s, now, cpu_s = self._spacing.look_s, self._clock(), self._cpu_clock()
            lane.timer = asyncio.get_running_loop().call_later(
                look_s, self._look, tenant_id, lane, now, cpu_s
            )

    def _look(self, tenant_id: UUID, lane: _Lane, since: float, cpu_since_s: float) -> None:
        assert self._spacing is not None
        now = self._clock()
        is_late = now - since > self._spacing.look_s + ON_TIME_S
        is_busy = self._cpu_clock() - cpu_since_s > MAX_BUSY * (now - since)
        is_long = now - lane.begun_at >= self._spacing.max_s
        lane.may_overlap = is_long or not (is_late or is_busy)
        self._let_in(tenant_id, lane)

    async def _wait(self, tenant_id: UUID, lane: _Lane, max_wait_s: float | None) -> None:
        waiter = asyncio.get_running_loop().create_future()
        lane.waiting.append(waiter)
        if lane.timer is None:
            self._watch(tenant_id, lane)
        try:
            async with asyncio.timeout(max_wait_s):
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

    def _is_alone(self, tenant_id: UUID) -> bool:
        last = self._last
        other = last if last is not None and last[0] != tenant_id else self._last_other
        return other is None or self._clock() - other[1] > PRESENCE_S
