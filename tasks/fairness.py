"""The order in which a worker looks at its queues: weighted tiers, round robin over their lanes.

kombu builds the class without arguments, calls `update` when queues come or go, `consume` before
each BRPOP (the order of its keys) and `rotate` with the queue that delivered. It runs on the
worker's consumer thread only and does no I/O.
Source: start-time fair queueing, Goyal, Vin and Cheng, SIGCOMM 1996.
"""

from __future__ import annotations

from collections.abc import Iterable

from tasks.queues import ServiceTier, tier_of_queue

# Messages a tier gets for each one that `batch` gets while all of them have a backlog.
TIER_WEIGHTS = {
    ServiceTier.PRIORITY: 16.0,
    ServiceTier.DEFAULT: 8.0,
    ServiceTier.FLEX: 2.0,
    ServiceTier.BATCH: 1.0,
}


class VirtualTokenCycle:
    """Orders queues by their tier's virtual time, then by how long ago the lane delivered."""

    def __init__(self) -> None:
        self.items: list[str] = []
        self._now = 0.0  # virtual time: that of the tier served last
        self._tier_time: dict[ServiceTier, float] = {}
        self._served: dict[str, int] = {}  # lane -> serial number of its last delivery
        self._serial = 0

    def update(self, it: Iterable[str]) -> None:
        """Replace the set of queues; kombu keeps a reference to `items`."""
        self.items[:] = list(it)

    def consume(self, n: int) -> list[str]:
        """All queues, the one to look at first in front."""
        return sorted(self.items[:n], key=self._rank)

    def rotate(self, last_used: str) -> str:
        """Charge the tier of the queue that delivered. An idle tier banks no credit."""
        self._serial += 1
        self._served[last_used] = self._serial
        tier = tier_of_queue(last_used)
        if tier is not None:
            start = max(self._now, self._tier_time.get(tier, 0.0))
            self._now = start
            self._tier_time[tier] = start + 1.0 / TIER_WEIGHTS[tier]
        return last_used

    def _rank(self, queue: str) -> tuple[float, float, int, str]:
        tier = tier_of_queue(queue)
        if tier is None:
            return (0.0, 0.0, self._served.get(queue, 0), queue)
        time = max(self._now, self._tier_time.get(tier, 0.0))
        return (time, -TIER_WEIGHTS[tier], self._served.get(queue, 0), queue)
