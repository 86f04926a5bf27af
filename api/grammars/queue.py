"""Turns of tenants at something that one at a time can have: who had it for less time comes first.

Who comes anew begins where the others are, so that nobody saves up time. The requests of one tenant
are served in the order they came.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from uuid import UUID

from tasks.errors import RateLimitExceeded, ServiceUnavailable


class FairQueue:
    """For one event loop. Bounded in number, and each wait in time."""

    def __init__(
        self,
        *,
        max_waiting: int,
        max_tenant: int,
        max_wait_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_waiting = max_waiting
        self._max_tenant = max_tenant  # of one tenant
        self._max_wait_s = max_wait_s
        self._clock = clock
        self._waiting: dict[UUID, deque[asyncio.Future[None]]] = {}
        # Seconds each tenant has had, while that is more than those who waited longest had.
        self._used_s: dict[UUID, float] = {}
        self._least_s = 0.0  # what the one whose turn it is had before
        self._holder: tuple[UUID, float] | None = None  # and since when

    @property
    def num_waiting(self) -> int:
        """Of all tenants."""
        return sum(map(len, self._waiting.values()))

    async def enter(self, tenant_id: UUID) -> None:
        """Wait for the turn, to be given back by `leave`. Who is cancelled meanwhile has none.

        Raises RateLimitExceeded if too many of the tenant's wait or its turn doesn't come in time,
        ServiceUnavailable if too many wait.
        """
        if self._holder is None:
            self._begin(tenant_id)
            return
        if len(self._waiting.get(tenant_id, ())) >= self._max_tenant:
            raise RateLimitExceeded("Too many new grammars of yours are being checked.")
        if self.num_waiting >= self._max_waiting:
            raise ServiceUnavailable("Too many new grammars are being checked at the moment.")
        await self._wait(tenant_id)

    def leave(self) -> None:
        """Give the turn to the next."""
        assert self._holder is not None
        tenant_id, since = self._holder
        self._holder = None
        used_s = self._used_s.get(tenant_id, self._least_s) + self._clock() - since
        self._used_s[tenant_id] = used_s
        while self._waiting:
            next_id = min(self._waiting, key=lambda waiter: self._used_s.get(waiter, self._least_s))
            waiter = self._take_first(next_id)
            if not waiter.done():  # it may have been cancelled a moment ago
                self._begin(next_id)
                waiter.set_result(None)
                return
        self._used_s.clear()
        self._least_s = 0.0

    def _take_first(self, tenant_id: UUID) -> asyncio.Future[None]:
        waiter = self._waiting[tenant_id].popleft()
        if not self._waiting[tenant_id]:
            del self._waiting[tenant_id]
        return waiter

    def _begin(self, tenant_id: UUID) -> None:
        self._holder = (tenant_id, self._clock())
        self._least_s = max(self._least_s, self._used_s.get(tenant_id, self._least_s))
        behind = [id_ for id_, used_s in self._used_s.items() if used_s <= self._least_s]
        for id_ in behind:
            del self._used_s[id_]

    async def _wait(self, tenant_id: UUID) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant_id, deque()).append(waiter)
        try:
            async with asyncio.timeout(self._max_wait_s):
                await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled():  # its turn came at the same moment
                self.leave()
            else:
                self._forget(tenant_id, waiter)
            if isinstance(error, TimeoutError):
                message = "The grammar could not be checked in time; too many new ones are."
                raise RateLimitExceeded(message) from None
            raise

    def _forget(self, tenant_id: UUID, waiter: asyncio.Future[None]) -> None:
        waiting = self._waiting.get(tenant_id, ())
        if waiter in waiting:
            self._waiting[tenant_id].remove(waiter)
            if not waiting:
                del self._waiting[tenant_id]
