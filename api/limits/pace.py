"""How fast bytes are taken in whose number is their sender's to say: none fill the event loop.

Each piece waits until those before it have had the time that their size is given. What comes now
and then never waits, and what comes at once is spread: between two pieces the loop turns to others.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from uuid import UUID

# A loop that is late has much to do, for whomever: the next piece waits so many times as long. So
# pieces fill a fifth of the loop at most, however slow the machine is.
RESTS = 4
ON_TIME_S = 0.002  # what timers are late by anyway
MAX_REST_S = 0.5


class Pace:
    """One queue. Used on the event loop alone."""

    def __init__(
        self,
        bytes_per_s: int,
        clock: Callable[[], float] = time.monotonic,
        *,
        max_delay_s: float = math.inf,
    ) -> None:
        self._bytes_per_s = bytes_per_s
        self._clock = clock
        self._max_delay_s = max_delay_s
        self._free_at = clock()

    @property
    def is_idle(self) -> bool:
        """Whether nobody would have to wait."""
        return self._free_at <= self._clock()

    def delay_s(self, num_bytes: int) -> float:
        """Line up with these bytes. They are to be handled after so many seconds."""
        now = self._clock()
        begins_at = max(now, self._free_at)
        self._free_at = min(begins_at + num_bytes / self._bytes_per_s, now + self._max_delay_s)
        return begins_at - now

    async def turn(self, num_bytes: int) -> None:
        """Line up with these bytes, and wait."""
        delay_s = self.delay_s(num_bytes)
        due_at = self._clock() + delay_s
        await asyncio.sleep(delay_s)
        self.note_begun(due_at)

    def note_begun(self, due_at: float) -> None:
        """What was due then is handled now. A loop that is late is busy: others wait longer."""
        late_s = self._clock() - due_at - ON_TIME_S
        if late_s > 0:
            self._free_at += min(RESTS * late_s, MAX_REST_S)


class TenantPace:
    """A queue for each tenant. Used on the event loop alone."""

    def __init__(
        self,
        bytes_per_s: int,
        clock: Callable[[], float] = time.monotonic,
        *,
        max_delay_s: float = math.inf,
    ) -> None:
        self._new_pace = partial(Pace, bytes_per_s, clock, max_delay_s=max_delay_s)
        self._paces: OrderedDict[UUID, Pace] = OrderedDict()  # whoever was there last, last

    def __len__(self) -> int:
        return len(self._paces)

    def of(self, tenant_id: UUID) -> Pace:
        """The tenant's queue, to be used at once: idle ones are forgotten."""
        while self._paces and next(iter(self._paces.values())).is_idle:
            self._paces.popitem(last=False)
        pace = self._paces.pop(tenant_id, None) or self._new_pace()
        self._paces[tenant_id] = pace
        return pace
