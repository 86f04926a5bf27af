"""A cursor in one job's events. It reads the ring, behind that the log, behind that Postgres.

Each event is given once and in order, whatever the sources repeat or lose:
- numbers up to the cursor are dropped;
- a number that doesn't follow the cursor is taken only from a `gap`, which restates all before it;
- the `done` marker's data is the job object, read from Postgres when the reader gets there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import structlog
from psycopg import InterfaceError, OperationalError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from api import metrics
from api.job_view import is_terminal, job_object, queue_object
from api.streams.channel import Channel
from api.streams.history import remaining_events
from store.jobs import JobRow, get_event_log, get_job, queue_position
from store.pools import AsyncPool
from tasks.errors import RateLimitExceeded
from tasks.events import Event, EventType, make_event, make_gap, texts_of
from tasks.jobs import JobStatus
from tasks.stream import read_log

log = structlog.get_logger(__name__)

BATCH_SIZE = 256
JUDGE_AFTER_S = 2.0
UNNUMBERED = 0  # sequence number of events that are not replayed


@dataclass(frozen=True, slots=True)
class Sources:
    """Where events come from."""

    pool: AsyncPool
    redis: Redis


class Reader:
    """Not shared: one stream, one reader. Never waits for news; `next` says what there is."""

    def __init__(self, sources: Sources, row: JobRow, cursor: int) -> None:
        self._sources = sources
        self._row = row
        self._cursor = cursor
        self._channel: Channel | None = None
        self._must_read_log = False
        self._judge_at: float | None = None  # when to look whether the log still reaches here
        self._may_step_back = False
        self._is_waiting: bool = row["status"] == JobStatus.QUEUED
        self._position: int | None = None
        self._position_is_due = self._is_waiting
        self.is_done = False
        self.finished: JobRow | None = None  # the job's last row, once it is done

    @property
    def job_id(self) -> UUID:
        """The job whose events these are."""
        job_id: UUID = self._row["id"]
        return job_id

    @property
    def is_waiting(self) -> bool:
        """Whether the job was still queued when last looked at."""
        return self._is_waiting

    def attach(self, channel: Channel, now: float) -> None:
        """Join the job's channel. A job known to be over needs no news.

        On a new channel the log is read when Redis has acknowledged the subscription, not before:
        an event in between would be in neither.
        """
        self._channel = channel
        self._must_read_log = channel.is_subscribed
        self._expect_to_be_ahead(now)
        if is_terminal(self._row):
            channel.over.set()

    def note_log_may_have_more(self) -> None:
        """It is time to compare with the log."""
        self._must_read_log = True

    def note_reconnect(self, now: float) -> None:
        """The connection was made anew. Redis may have lost data meanwhile."""
        self._must_read_log = True
        self._expect_to_be_ahead(now)

    def tick(self, now: float) -> bool:
        """Whether `next` is to be called although nothing was heard."""
        if self._judge_at is None or now < self._judge_at:
            return False
        self._judge_at = now + JUDGE_AFTER_S
        self._may_step_back = self._must_read_log = True
        return True

    def _expect_to_be_ahead(self, now: float) -> None:
        self._judge_at = now + JUDGE_AFTER_S if self._cursor else None

    def note_position_is_due(self) -> None:
        """Say the place in the queue again, if it changed."""
        self._position_is_due = self._is_waiting

    async def next(self) -> Sequence[Event]:
        """Some of the events after the cursor; none if there are none now."""
        assert self._channel is not None
        if self.is_done:
            return ()
        try:
            if queued := await self._queued():
                return (queued,)
            return await self._deliver(await self._collect(self._channel))
        except (OperationalError, InterfaceError, RateLimitExceeded) as error:
            # Postgres is away, or the tenant has too much under way: the next tick tries again.
            log.warning("stream_waits_for_postgres", error=type(error).__name__)
            return ()

    async def _collect(self, channel: Channel) -> Sequence[Event]:
        events = channel.ring.after(self._cursor)
        if events is None or (not events and self._must_read_log):
            events = await self._read_log(channel)
        if not events and channel.over.is_set():
            events = await self._read_postgres()
        return events

    async def _read_log(self, channel: Channel) -> list[Event]:
        metrics.stream_catch_ups.inc()
        ring_had_newer = channel.ring.last_seq > self._cursor
        self._must_read_log = False
        try:
            events = await read_log(self._sources.redis, self.job_id, self._cursor, BATCH_SIZE)
            if not events and self._may_step_back and not channel.over.is_set():
                events = await self._step_back()
        except RedisError as error:
            log.warning("stream_waits_for_redis", error=type(error).__name__)
            return []
        self._must_read_log = len(events) == BATCH_SIZE
        if not events and ring_had_newer:  # the log has lost what the ring holds
            channel.ring.clear()
            self._must_read_log = True
        return events if _follows(events, self._cursor) else []

    async def _step_back(self) -> list[Event]:
        """Nothing after the cursor: is the cursor itself in the log?

        If not, the log has lost its end, or the client made the number up. A producer that writes
        the log anew takes less than JUDGE_AFTER_S to get back here. After that the text as far as
        it goes replaces what the client has.
        """
        self._may_step_back = False
        redis = self._sources.redis
        if await read_log(redis, self.job_id, self._cursor - 1, 1):
            self._judge_at = None
            return []
        events = await read_log(redis, self.job_id, 0)
        if not events or not _follows(events, 0):
            return []
        return [make_gap(events[-1].seq, texts_of(events, self._row["num_choices"]))]

    async def _read_postgres(self) -> list[Event]:
        row = await self._finished_row()
        if row is None:
            return []
        event_log = await get_event_log(self._sources.pool, row["tenant_id"], self.job_id)
        return remaining_events(
            self._cursor,
            event_log=event_log,
            output=row["output"],
            last_seq=row["last_seq"] or 0,
        )

    async def _deliver(self, events: Sequence[Event]) -> Sequence[Event]:
        if not events:
            return ()
        self._is_waiting = False
        self._judge_at = None
        if events[-1].type == EventType.DONE:
            row = await self._finished_row()
            if row is None:
                return ()
            done = make_event(events[-1].seq, EventType.DONE, job=job_object(row))
            events = [*events[:-1], done]
            self.is_done = True
            self.finished = row
        self._cursor = events[-1].seq
        return events

    async def _finished_row(self) -> JobRow | None:
        row = await get_job(self._sources.pool, self._row["tenant_id"], self.job_id)
        return row if row and is_terminal(row) else None

    async def _queued(self) -> Event | None:
        """Where the job waits, at first and when that has changed."""
        if not self._position_is_due:
            return None
        self._position_is_due = False
        tenant_id = self._row["tenant_id"]
        position = await queue_position(self._sources.pool, tenant_id, self.job_id)
        if position is None or position == self._position:
            return None
        self._position = position
        fields = queue_object(self._row, position) or {}
        return make_event(UNNUMBERED, EventType.QUEUED, **fields)


def _follows(events: Sequence[Event], cursor: int) -> bool:
    """Whether the first event goes on where the cursor is, or restates what is before it."""
    first = events[0] if events else None
    return first is None or first.seq == cursor + 1 or first.type == EventType.GAP
