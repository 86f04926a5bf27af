"""How fast refusals are answered: those who ask again at once would fill the event loop.

One now and then is answered at once. Many are answered one after the other, and whoever waits for
its refusal asks no more meanwhile.
"""

from __future__ import annotations

import asyncio
from uuid import UUID

from api.limits.pace import Pace, TenantPace

PER_S = 50
MAX_WAIT_S = 5.0


class RefusalPace:
    """Of one process, for one event loop."""

    def __init__(self) -> None:
        self._without_key = Pace(PER_S, max_delay_s=MAX_WAIT_S)
        self._of_tenants = TenantPace(PER_S, max_delay_s=MAX_WAIT_S)

    async def turn_without_key(self) -> None:
        """Of all who have no valid key."""
        await asyncio.sleep(self._without_key.delay_s(1))

    async def turn(self, tenant_id: UUID) -> None:
        """Of a tenant."""
        await asyncio.sleep(self._of_tenants.of(tenant_id).delay_s(1))
