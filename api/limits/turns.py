"""How many requests of one tenant are worked on at once, so that none fills the event loop.

A request has a turn until its answer begins, but for the time in which its body is still to come,
and until it waits for a job. So neither slow clients nor streams and long polls keep the others of
their tenant waiting.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from store.tenant_gate import Spacing, TenantGate

TURN_WAIT_S = 10.0
# While other tenants ask, too: what is worked on is what their requests wait behind. Most requests
# take less than a look, so those of a tenant are worked on one after the other.
TURN_SPACING = Spacing(look_s=0.005, max_s=0.1)


class Turn:
    """Of one request. Used on the event loop alone."""

    def __init__(self, gate: TenantGate, tenant_id: UUID) -> None:
        self._gate = gate
        self._tenant_id = tenant_id
        self._is_taken = False

    def belong_to(self, tenant_id: UUID) -> None:
        """It is known now whose it is: if another's, it has to be taken anew."""
        if tenant_id != self._tenant_id:
            self.give_back()
            self._tenant_id = tenant_id

    async def take(self, *, is_patient: bool = False) -> None:
        """Wait behind the tenant's other requests. Raises RateLimitExceeded when it takes long,
        unless the request is patient.
        """
        if not self._is_taken:
            await self._gate.enter(self._tenant_id, is_patient=is_patient)
            self._is_taken = True

    def give_back(self) -> None:
        """Let the tenant's next request go on. Safe to call twice, and without a turn."""
        if self._is_taken:
            self._is_taken = False
            self._gate.leave(self._tenant_id)


def give_back_turn(state: Mapping[str, Any]) -> None:
    """Give back the turn of a request, known by its state, if it has one."""
    turn = state.get("turn")
    if turn is not None:
        turn.give_back()
