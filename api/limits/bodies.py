"""Taking in one tenant's large bodies: how many at once, and how fast.

Receiving and parsing a body is work of the event loop, in proportion to its size. So large ones are
read only in their turn, and no faster than the loop can do beside all else; what isn't read waits
in the socket of its sender. A sender that is slow keeps nobody waiting but its own tenant.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from uuid import UUID

from api.limits.pace import TenantPace
from store.tenant_gate import TenantGate

LARGE_BYTES = 64 << 10  # up to here a body costs no more than the request around it
MAX_TENANT_BODIES = 8
BODY_WAIT_S = 10.0
TENANT_BYTES_PER_S = 32 << 20  # of which an idle processor can take in and parse ten times as much


class LargeBodies:
    """One an API process; used on its event loop alone."""

    def __init__(
        self,
        *,
        max_tenant: int = MAX_TENANT_BODIES,
        bytes_per_s: int = TENANT_BYTES_PER_S,
        max_wait_s: float = BODY_WAIT_S,
    ) -> None:
        self.gate = TenantGate(max_tenant, max_wait_s)
        self.paces = TenantPace(bytes_per_s)

    def of(self, tenant_id: UUID) -> TenantBodies:
        """For a request of the tenant's."""
        return TenantBodies(self, tenant_id)


@dataclass(frozen=True, slots=True)
class TenantBodies:
    """What a request may do with a large body."""

    _all: LargeBodies
    _tenant_id: UUID

    def place(self) -> AbstractAsyncContextManager[None]:
        """Hold one of the tenant's places. Raises RateLimitExceeded when none comes in time."""
        return self._all.gate.turn(self._tenant_id)

    async def pace(self, num_bytes: int) -> None:
        """To be awaited before so many bytes are handled."""
        await self._all.paces.of(self._tenant_id).turn(num_bytes)
