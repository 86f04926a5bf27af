"""The re-hinter: gives queued jobs a new hint when theirs may be lost."""

from __future__ import annotations

import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isinf
from typing import Any

import structlog
from kombu import Queue

from store import hints
from store.pools import DictConnection
from tasks.inference import Hint, num_tickets, send_hints
from tasks.queues import ServiceTier, queue_for
from workers.maintenance import metrics
from workers.maintenance.redis_watch import RedisWatch

INTERVAL_S = 0.5

# Batches that wait while Redis is slow. More are dropped: their jobs' hints count as lost later.
MAX_WAITING_BATCHES = 16

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LaneHints:
    """Hints of one queue, whose lane has `num_ready` jobs that may need a ticket."""

    queue: Queue
    num_ready: int
    hints: Sequence[Hint]


def send_missing(lanes: Sequence[LaneHints]) -> None:
    """Send as many of them as tickets are missing. In a backlog hints are late and not lost: what
    waits in a queue already stands for the jobs of its lane, whichever it names.
    """
    waiting = num_tickets([lane.queue for lane in lanes])
    missing = [
        hint
        for lane, num in zip(lanes, waiting, strict=True)
        for hint in lane.hints[: max(0, lane.num_ready - num)]
    ]
    if missing:
        send_hints(missing)


class HintSender(threading.Thread):
    """Sends hints, so that the loop in Postgres never waits for Redis."""

    def __init__(self, send: Callable[[Sequence[LaneHints]], None] = send_missing) -> None:
        super().__init__(name="hint-sender", daemon=True)
        self._send = send
        self._batches: queue.Queue[Sequence[LaneHints] | None] = queue.Queue(MAX_WAITING_BATCHES)

    def put(self, batch: Sequence[LaneHints]) -> None:
        """Send these soon. Returns at once; drops them if Redis has been slow for long."""
        try:
            self._batches.put_nowait(batch)
        except queue.Full:
            metrics.HINTS.labels("dropped").inc(_num_hints(batch))

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
                metrics.HINTS.labels("failed").inc(_num_hints(batch))
                log.warning(
                    "hints_not_sent", num_hints=_num_hints(batch), error=type(error).__name__
                )
            else:
                metrics.HINTS.labels("sent").inc(_num_hints(batch))


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
            self._sender.put(_by_lane(rows))
        return False

    def _forget_lost(self, connection: DictConnection) -> None:
        within_s = self._watch.lost_hints()
        if within_s is None:
            return
        num = hints.forget_hints(connection, within_s=None if isinf(within_s) else within_s)
        self._watch.forgotten()
        metrics.FORGOTTEN.inc(num)
        log.warning("hints_forgotten", num_hints=num)


def _num_hints(lanes: Sequence[LaneHints]) -> int:
    return sum(len(lane.hints) for lane in lanes)


def _by_lane(rows: Sequence[dict[str, Any]]) -> list[LaneHints]:
    lanes: defaultdict[tuple[str, str, int, int], list[Hint]] = defaultdict(list)
    for row in rows:
        key = (row["pool"], row["service_tier"], row["lane"], row["num_ready"])
        lanes[key].append(_hint(row))
    return [
        LaneHints(queue_for(pool, ServiceTier(tier), lane), num_ready, hints)
        for (pool, tier, lane, num_ready), hints in lanes.items()
    ]


def _hint(row: dict[str, Any]) -> Hint:
    return Hint(
        job_id=row["id"],
        pool=row["pool"],
        tier=ServiceTier(row["service_tier"]),
        lane=row["lane"],
        hint_count=row["hint_count"],
    )
