"""The re-hinter: gives queued jobs a new hint when theirs may be lost."""

from __future__ import annotations

import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isinf
from typing import Any
from uuid import UUID

import structlog
from kombu import Queue
from psycopg import Error as DatabaseError

from store import hints
from store.aside import Aside
from store.faults import reason
from store.hints import Lane
from store.pools import DictConnection
from tasks.inference import Hint, num_tickets, send_hints
from tasks.queues import ServiceTier, queue_for
from tasks.vital import vital
from workers.maintenance import metrics
from workers.maintenance.kinds import look_after
from workers.maintenance.redis_watch import RedisWatch

INTERVAL_S = 0.5

# Batches that wait while Redis is slow. More are dropped: their jobs' hints count as lost later.
MAX_WAITING_BATCHES = 16

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LaneHints:
    """Hints of one lane, which has `num_ready` jobs that may need a ticket."""

    lane: Lane
    num_ready: int
    hints: Sequence[Hint]


@dataclass(frozen=True, slots=True)
class Sent:
    """What came of a batch: how many tickets now wait in its lanes, and whose hint wasn't sent."""

    num_tickets: Mapping[Lane, int] = field(default_factory=dict)
    held_back: Sequence[UUID] = ()


def send_missing(lanes: Sequence[LaneHints]) -> Sent:
    """Send as many of them as tickets are missing. In a backlog hints are late and not lost: what
    waits in a queue already serves the jobs of its lane, whichever it names.
    """
    before = num_tickets([_queue_of(lane.lane) for lane in lanes])
    missing: list[Hint] = []
    held_back: list[UUID] = []
    after: dict[Lane, int] = {}
    for lane, num in zip(lanes, before, strict=True):
        sent = lane.hints[: max(0, lane.num_ready - num)]
        missing += sent
        held_back += [hint.job_id for hint in lane.hints[len(sent) :]]
        after[lane.lane] = num + len(sent)
    if missing:
        send_hints(missing)
    return Sent(after, held_back)


class HintSender(threading.Thread):
    """Sends hints, so that the loop in Postgres never waits for Redis."""

    def __init__(self, send: Callable[[Sequence[LaneHints]], Sent] = send_missing) -> None:
        super().__init__(name="hint-sender", daemon=True)
        self._send = send
        self._batches: queue.Queue[Sequence[LaneHints] | None] = queue.Queue(MAX_WAITING_BATCHES)
        self._lock = threading.Lock()
        self._num_tickets: dict[Lane, int] = {}  # of the lanes that had some when last looked at
        self._held_back: list[UUID] = []

    def put(self, batch: Sequence[LaneHints]) -> None:
        """Send these soon, and look at the known lanes anew. Returns at once; drops them if Redis
        has been slow for long.
        """
        with_known = [
            *batch,
            *(LaneHints(lane, 0, ()) for lane in self.num_tickets().keys() - _lanes_of(batch)),
        ]
        if not with_known:
            return
        try:
            self._batches.put_nowait(with_known)
        except queue.Full:
            metrics.HINTS.labels("dropped").inc(_num_hints(batch))

    def num_tickets(self) -> Mapping[Lane, int]:
        """What waits in the lanes' queues, as last seen. Lanes that aren't named may be empty."""
        with self._lock:
            return self._num_tickets

    def take_held_back(self) -> Sequence[UUID]:
        """The jobs whose hints weren't sent since the last call: their lanes had tickets enough."""
        with self._lock:
            held_back, self._held_back = self._held_back, []
        return held_back

    def stop(self) -> None:
        """End after the batch at hand."""
        try:
            self._batches.put_nowait(None)
        except queue.Full:
            return  # a daemon: it ends with the process

    def run(self) -> None:
        """Send batch after batch."""
        with vital(self.name):
            while (batch := self._batches.get()) is not None:
                self._send_batch(batch)

    def _send_batch(self, batch: Sequence[LaneHints]) -> None:
        try:
            sent = self._send(batch)
        except Exception as error:  # a thread's boundary: the hints count as lost later
            self._note(batch, Sent())
            metrics.HINTS.labels("failed").inc(_num_hints(batch))
            log.warning("hints_not_sent", num_hints=_num_hints(batch), error=type(error).__name__)
        else:
            self._note(batch, sent)
            metrics.HINTS.labels("held_back").inc(len(sent.held_back))
            metrics.HINTS.labels("sent").inc(_num_hints(batch) - len(sent.held_back))

    def _note(self, batch: Sequence[LaneHints], sent: Sent) -> None:
        looked_at = _lanes_of(batch)
        with self._lock:
            others = {k: num for k, num in self._num_tickets.items() if k not in looked_at}
            waiting = {lane: num for lane, num in sent.num_tickets.items() if num}
            self._num_tickets = others | waiting
            self._held_back += sent.held_back


class Rehinter:
    """Marks due jobs in Postgres, commits, then hands their hints to the sender."""

    def __init__(self, watch: RedisWatch, sender: HintSender) -> None:
        self._watch = watch
        self._sender = sender
        self._aside = Aside()
        self._start = hints.NOBODY  # the tenant from which the next look goes on

    def step(self, connection: DictConnection) -> bool:
        """One window of hints."""
        look_after("lost_hints", lambda: self._forget_lost(connection))
        held_back = self._sender.take_held_back()
        look_after("held_back_hints", lambda: hints.give_back(connection, held_back))
        look_after("rehint", lambda: self._hint(connection))
        return False

    def _hint(self, connection: DictConnection) -> None:
        self._start = hints.next_tenant(connection, self._start)
        rows = hints.rehint(
            connection,
            self._sender.num_tickets(),
            start=self._start,
            aside=self._aside.ids(),
            set_aside=self._set_aside,
        )
        self._sender.put(_by_lane(rows))

    def _set_aside(self, job_id: UUID, error: DatabaseError) -> None:
        metrics.UNITS_FAILED.labels("rehint").inc()
        num_tries = self._aside.add(job_id)
        log.error("job_not_hinted", job_id=str(job_id), tries=num_tries, error=reason(error))

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


def _lanes_of(batch: Sequence[LaneHints]) -> set[Lane]:
    return {hints_of.lane for hints_of in batch}


def _queue_of(lane: Lane) -> Queue:
    pool, tier, number = lane
    return queue_for(pool, ServiceTier(tier), number)


def _by_lane(rows: Sequence[dict[str, Any]]) -> list[LaneHints]:
    lanes: defaultdict[Lane, list[Hint]] = defaultdict(list)
    num_ready: dict[Lane, int] = {}
    for row in rows:
        lane = (row["pool"], row["service_tier"], row["lane"])
        lanes[lane].append(_hint(row))
        num_ready[lane] = row["num_ready"]
    return [LaneHints(lane, num_ready[lane], hints) for lane, hints in lanes.items()]


def _hint(row: dict[str, Any]) -> Hint:
    return Hint(
        job_id=row["id"],
        pool=row["pool"],
        tier=ServiceTier(row["service_tier"]),
        lane=row["lane"],
        hint_count=row["hint_count"],
    )
