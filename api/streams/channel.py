"""One job somebody listens to: its ring, its listeners, and what is known of its end."""

from __future__ import annotations

import asyncio
from typing import Protocol
from uuid import UUID

from api.streams.ring import Ring
from tasks.events import Event, EventType
from tasks.keys import stream_channel

# A channel that is silent is compared with the log after this long, then ever more rarely: a live
# connection loses no messages, so this is a belt.
FIRST_CHECK_S = 2.0
LONGEST_CHECK_S = 30.0
# Postgres is asked whether a silent job is over this often, for all such jobs at once.
SILENT_S = 2.0


class Listener(Protocol):
    """Somebody who wants to know of one job. Called on the event loop; must not block or raise."""

    def wake(self) -> None:
        """There may be something new."""
        ...

    def wake_for_log(self) -> None:
        """There may be something new that the ring lacks."""
        ...

    def wake_after_reconnect(self) -> None:
        """The same, and the log may have lost its end meanwhile."""
        ...

    def tick(self, now: float) -> None:
        """About a second has passed."""
        ...


class Channel:
    """Lives as long as it has listeners."""

    def __init__(self, job_id: UUID, now: float) -> None:
        self.job_id = job_id
        self.name = stream_channel(job_id)
        self.ring = Ring()
        self.listeners: set[Listener] = set()
        self.is_subscribed = False  # Redis has acknowledged; nothing published later is missed
        self.over = asyncio.Event()  # the job's end stands in Postgres
        self._heard_at = now
        self._check_at = now + FIRST_CHECK_S
        self._check_interval_s = FIRST_CHECK_S

    def hear(self, event: Event, now: float) -> None:
        """A live event came."""
        self._heard_at = now
        self._check_interval_s = FIRST_CHECK_S
        self._check_at = now + FIRST_CHECK_S
        is_new = self.ring.add(event)
        if event.type == EventType.DONE:
            self.over.set()
        if is_new or self.over.is_set():
            self.wake_all()

    def confirm_subscription(self) -> None:
        """From here on nothing is missed, so the log is to be read once more now."""
        self.is_subscribed = True
        for listener in tuple(self.listeners):
            listener.wake_after_reconnect()

    def note_over(self) -> None:
        """Postgres says the job is over."""
        self.over.set()
        self.wake_all()

    def wake_all(self) -> None:
        """Every listener looks for news."""
        for listener in tuple(self.listeners):
            listener.wake()

    def is_silent(self, now: float) -> bool:
        """Whether Postgres is to be asked about the end."""
        return now - self._heard_at >= SILENT_S and not self.over.is_set()

    def tick(self, now: float) -> None:
        """Compare with the log if it is time to, and let listeners look at their own clocks."""
        if now >= self._check_at:
            self._check_at = now + self._check_interval_s
            self._check_interval_s = min(2 * self._check_interval_s, LONGEST_CHECK_S)
            for listener in tuple(self.listeners):
                listener.wake_for_log()
        for listener in tuple(self.listeners):
            listener.tick(now)
