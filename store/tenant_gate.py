"""Turns of tenants at something that all share: each waits behind its own, not behind others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from uuid import UUID

from tasks.errors import RateLimitExceeded


@dataclass(slots=True)
class _Lane:
    """Of one tenant, while it has a turn or waits for one."""

    turns: asyncio.Semaphore
    num_users: int = field(default=0)


class TenantGate:
    """How much one tenant may have under way at once. For one event loop."""

    def __init__(self, max_turns: int, max_wait_s: float) -> None:
        self._max_turns = max_turns
        self._max_wait_s = max_wait_s
        self._lanes: dict[UUID, _Lane] = {}

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
        lane = self._lanes.setdefault(tenant_id, _Lane(asyncio.Semaphore(self._max_turns)))
        lane.num_users += 1
        try:
            await self._wait(lane)
        except BaseException:
            self._forget(tenant_id, lane)
            raise

    def leave(self, tenant_id: UUID) -> None:
        """Give a turn back."""
        lane = self._lanes[tenant_id]
        lane.turns.release()
        self._forget(tenant_id, lane)

    def _forget(self, tenant_id: UUID, lane: _Lane) -> None:
        lane.num_users -= 1
        if not lane.num_users:
            del self._lanes[tenant_id]

    async def _wait(self, lane: _Lane) -> None:
        try:
            async with asyncio.timeout(self._max_wait_s):
                await lane.turns.acquire()
        except TimeoutError:
            raise RateLimitExceeded("Too many of your requests are under way at once.") from None
