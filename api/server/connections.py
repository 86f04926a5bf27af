"""All connections of the process: how many there may be, and who goes when there are too many.

A connection is busy from the end of a request's head to the end of its answer; before and between
it waits. Busy ones are bounded by refusing requests, all of them by letting go whoever has waited
longest: so half-sent requests hold no place that a whole one needs, and health checks are answered
while every place is taken.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from api.limits.pace import Pace
from api.server.bounds import AT_ONCE_S, PAUSE_S, Timeouts
from api.server.refusals import Refusals
from api.settings import DROPPED_BYTES_PER_S

# Connections above the bound that can't be busy: those that come and are told to come again.
SPARE = 256


class Connection(Protocol):
    """What is known of one."""

    def let_go(self) -> None:
        """Close it, since its place is needed. It is waiting."""
        ...

    def tick(self, now: float) -> None:
        """Some time has passed: end it if it took too long over anything."""
        ...


class Connections:
    """One a server; used on its event loop alone."""

    def __init__(
        self,
        max_busy: int,
        *,
        spare: int = SPARE,
        timeouts: Timeouts | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.timeouts = timeouts or Timeouts()
        self.clock = clock
        self.drops = Pace(DROPPED_BYTES_PER_S, clock)  # of bodies that were answered unread
        self.refusals = Refusals(clock)
        self._max_busy = max_busy
        self._max_open = max_busy + spare
        self._busy: set[Connection] = set()
        self._waiting: dict[Connection, None] = {}  # longest first
        self._ticker: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._busy) + len(self._waiting)

    @property
    def has_room(self) -> bool:
        """Whether one more may become busy."""
        return len(self._busy) < self._max_busy

    def note_waiting(self, connection: Connection) -> None:
        """It is new, or its last answer is complete. The one that waits longest may have to go."""
        self._busy.discard(connection)
        self._waiting.pop(connection, None)
        self._waiting[connection] = None
        if len(self) > self._max_open:
            longest = next(iter(self._waiting))
            del self._waiting[longest]
            longest.let_go()
        if self._ticker is None:
            self._schedule()

    def note_busy(self, connection: Connection) -> None:
        """The head of a request is complete."""
        self._waiting.pop(connection, None)
        self._busy.add(connection)

    def remove(self, connection: Connection) -> None:
        """It is closed. Safe to call twice."""
        self._busy.discard(connection)
        self._waiting.pop(connection, None)

    def _schedule(self) -> None:
        self._ticker = asyncio.get_running_loop().call_later(
            self.timeouts.tick_s, lambda: self._look(iter((*self._waiting, *self._busy)))
        )

    def _look(self, left: Iterator[Connection]) -> None:
        """Let each of these look at its clock, some at once; those that have closed may be among
        them.
        """
        loop = asyncio.get_running_loop()
        self._ticker = loop.call_later(PAUSE_S, self._look, left)  # though one's look should fail
        began = self.clock()
        for connection in left:
            now = self.clock()
            connection.tick(now)
            if now - began > AT_ONCE_S:
                return
        self._ticker.cancel()
        self._ticker = None
        if len(self):
            self._schedule()
