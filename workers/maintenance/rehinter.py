"""The re-hinter: gives queued jobs a new hint when theirs may be lost."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from math import isinf
from typing import Any

import structlog

from store import hints
from store.pools import DictConnection
from tasks.inference import Hint, send_hints
from tasks.queues import ServiceTier
from workers.maintenance import metrics
from workers.maintenance.redis_watch import RedisWatch

INTERVAL_S = 0.5

# Batches that wait while Redis is slow. More are dropped: their jobs' hints count as lost later.
MAX_WAITING_BATCHES = 16

log = structlog.get_logger(__name__)


class HintSender(threading.Thread):
    """Sends hints, so that the loop in Postgres never waits for Redis."""

    def __init__(self, send: Callable[[Sequence[Hint]], None] = send_hints) -> None:
        super().__init__(name="hint-sender", daemon=True)
        self._send = send
        self._batches: queue.Queue[Sequence[Hint] | None] = queue.Queue(MAX_WAITING_BATCHES)

    def put(self, batch: Sequence[Hint]) -> None:
        """Send these soon. Returns at once; drops them if Redis has been slow for long."""
        try:
            self._batches.put_nowait(batch)
        except queue.Full:
            metrics.HINTS.labels("dropped").inc(len(batch))

    def stop(self) -> None:
        """End after the batch at hand."""
        try:
            self._batches.put_nowait(None)
        except queue.Full:
            return  # a daemon: it ends with the process

    def run(self) -> None:
        """Send batch after batch."""
        while (batch := self._batches.get()) is not None:
            try:
                self._send(batch)
            except Exception as error:  # a thread's boundary: the hints count as lost later
                metrics.HINTS.labels("failed").inc(len(batch))
                log.warning("hints_not_sent", num_hints=len(batch), error=type(error).__name__)
            else:
                metrics.HINTS.labels("sent").inc(len(batch))


class Rehinter:
    """Marks due jobs in Postgres, commits, then hands their hints to the sender."""

    def __init__(self, watch: RedisWatch, sender: HintSender) -> None:
        self._watch = watch
        self._sender = sender

    def step(self, connection: DictConnection) -> bool:
        """One window of hints."""
        self._forget_lost(connection)
        rows = hints.rehint(connection)
        if rows:
            self._sender.put([_hint(row) for row in rows])
        return False

    def _forget_lost(self, connection: DictConnection) -> None:
        within_s = self._watch.lost_hints()
        if within_s is None:
            return
        num = hints.forget_hints(connection, within_s=None if isinf(within_s) else within_s)
        self._watch.forgotten()
        metrics.FORGOTTEN.inc(num)
        log.warning("hints_forgotten", num_hints=num)


def _hint(row: dict[str, Any]) -> Hint:
    return Hint(
        job_id=row["id"],
        pool=row["pool"],
        tier=ServiceTier(row["service_tier"]),
        lane=row["lane"],
        hint_count=row["hint_count"],
    )
