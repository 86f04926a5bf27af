"""The last events of one job, in one copy for all its readers."""

from __future__ import annotations

from collections import deque

from tasks.events import Event, EventType

RING_SIZE = 256


class Ring:
    """Consecutive events as they came over pub/sub. What is not in here is in the log."""

    def __init__(self, size: int = RING_SIZE) -> None:
        self._events: deque[Event] = deque(maxlen=size)

    @property
    def last_seq(self) -> int:
        """The newest event's number, 0 without one."""
        return self._events[-1].seq if self._events else 0

    def add(self, event: Event) -> bool:
        """Take a live event. False for one that is old: a producer repeats what it is unsure of.

        An event that doesn't follow the last one starts the ring anew; readers that stand before
        it read the log.
        """
        if event.seq <= self.last_seq:
            return False
        if self._events and event.seq != self.last_seq + 1:
            self._events.clear()
        self._events.append(event)
        return True

    def after(self, cursor: int) -> list[Event] | None:
        """Events after a number; None if the ring doesn't reach back that far."""
        if cursor >= self.last_seq:
            return []
        first = self._events[0]
        if first.seq > cursor + 1 and first.type != EventType.GAP:
            return None
        # From the newest backwards: a reader is usually one event behind.
        newer: list[Event] = []
        for event in reversed(self._events):
            if event.seq <= cursor:
                break
            newer.append(event)
        newer.reverse()
        return newer

    def clear(self) -> None:
        """Forget all: the log holds other events than these."""
        self._events.clear()
