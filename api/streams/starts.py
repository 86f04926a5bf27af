"""Streams that have something to send begin a few at a time.

A thousand streams may be due at once: heartbeats of those opened together, comparisons with the
log, an event that all of them wait for. Then each turn of the event loop begins some of a tenant's,
and between the turns it serves others.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from uuid import UUID

MAX_A_TURN = 16  # of one tenant: about a ms


class Starts:
    """One an API process; used on its event loop alone."""

    def __init__(self, max_a_turn: int = MAX_A_TURN) -> None:
        self._max_a_turn = max_a_turn
        self._waiting: dict[UUID, deque[Callable[[], None]]] = {}

    def begin(self, tenant_id: UUID, start: Callable[[], None]) -> None:
        """Call `start`: at once if none of the tenant's others began in this turn of the loop."""
        if (waiting := self._waiting.get(tenant_id)) is not None:
            waiting.append(start)
            return
        self._waiting[tenant_id] = deque()
        asyncio.get_running_loop().call_soon(self._go_on, tenant_id)
        start()

    def _go_on(self, tenant_id: UUID) -> None:
        waiting = self._waiting[tenant_id]
        if not waiting:
            del self._waiting[tenant_id]
            return
        asyncio.get_running_loop().call_soon(self._go_on, tenant_id)
        for _ in range(min(len(waiting), self._max_a_turn)):
            waiting.popleft()()
