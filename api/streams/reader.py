"""A cursor in one job's events. It reads the ring, behind that the log, behind that Postgres.

Each event is given once and in order, whatever the sources repeat or lose:
- numbers up to the cursor are dropped;
- a number that doesn't follow the cursor is taken only from a `gap`, which restates all before it;
- with the `done` marker comes the job's row, read from Postgres when the reader gets there.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from functools import partial
from uuid import UUID

import structlog
from psycopg import InterfaceError, OperationalError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from api import metrics
from api.job_view import is_terminal, queue_object
from api.json_pieces import LaterList
from api.long_work import LongWork
from api.streams.channel import Channel
from api.streams.history import History
from api.streams.lists import ListReader
from store.jobs import JobRow, get_job, queue_position, read_event_log
from store.pools import AsyncPool
from store.tenant_gate import TenantGate
from tasks.errors import RateLimitExceeded
from tasks.events import Event, EventType, TextsSoFar, make_event, make_gap
from tasks.jobs import JobStatus
from tasks.stream import read_log

log = structlog.get_logger(__name__)

BATCH_SIZE = 256
JUDGE_AFTER_S = 2.0
CROWD = 32  # readers of one job in this process, who take some ms together for each event
UNNUMBERED = 0  # sequence number of events that are not replayed


@dataclass(frozen=True, slots=True)
class Sources:
    """Where events come from."""

    pool: AsyncPool
    redis: Redis
    long_work: LongWork
    turns: TenantGate

    def lists(self, row: JobRow) -> ListReader:
        """What reads the lists of a finished job's answer."""
        return ListReader(self.pool, self.long_work, row)


class Reader:
    """Not shared: one stream, one reader. Never waits for news; `next` says what there is."""

    def __init__(self, sources: Sources, row: JobRow, cursor: int) -> None:
        self._sources = sources
        self._row = row
        self._cursor = cursor
        self._channel: Channel | None = None
        self._history: History | None = None  # once Postgres is what is left to read
        self._judge_at: float | None = None  # when to look whether the log still reaches here
        self._may_step_back = False
        self._is_waiting: bool = row["status"] == JobStatus.QUEUED
        self._position: int | None = None
        self._position_is_due = False
        self._lists: ListReader | None = None  # once a list is read
        self.is_done = False
        self.finished: JobRow | None = None  # the job's last row, once it is done

    @property
    def job_id(self) -> UUID:
        """The job whose events these are."""
        job_id: UUID = self._row["id"]
        return job_id

    @property
    def tenant_id(self) -> UUID:
        """Whose job it is."""
        tenant_id: UUID = self._row["tenant_id"]
        return tenant_id

    @property
    def long_work(self) -> LongWork:
        """Where what takes long waits for its turn."""
        return self._sources.long_work

    def read_list(self, later: LaterList) -> AsyncGenerator[bytes]:
        """A list of the finished job's, as JSON, bit by bit."""
        self._lists = self._lists or self._sources.lists(self._row)
        return self._lists.read(later)

    @property
    def is_crowded(self) -> bool:
        """Whether many read the same events."""
        return self._channel is not None and len(self._channel.listeners) > CROWD

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
        """Say the place in the queue, if the job still waits and it changed."""
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
        events: Sequence[Event] | None = channel.ring.after(self._cursor)
        if events is None or (not events and self._must_read_log):
            events = await self._read_log(channel)
        if not events and channel.over.is_set():
            events = await self._read_postgres()
        return events

    async def _read_log(self, channel: Channel) -> list[Event]:
        metrics.stream_catch_ups.inc()
        ring_had_newer = channel.ring.last_seq > self._cursor
        self._must_read_log = False
        events: list[Event] = []
        try:
            events = await read_log(self._sources.redis, self.job_id, self._cursor, BATCH_SIZE)
            if not events and self._may_step_back and not channel.over.is_set():
                events = await self._step_back()
        except RedisError as error:
            log.warning("stream_waits_for_redis", error=type(error).__name__)
        else:
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
        texts, last = TextsSoFar(self._row["num_choices"]), 0
        while events := await read_log(redis, self.job_id, last, BATCH_SIZE):
            if not _follows(events, last):
                return []
            texts.add(events)
            last = events[-1].seq
        return [make_gap(last, texts.texts)] if last else []

    async def _read_postgres(self) -> Sequence[Event]:
        history = self._history = self._history or await self._stored()
        events: Sequence[Event] = ()
        while history and not (events := await history.next(self._cursor)):
            await self._sources.long_work.turn()  # those the client has, or half of a long one
        return events

    async def _stored(self) -> History | None:
        """What Postgres keeps of the job; None before its end."""
        row = await self._finished_row()
        if row is None:
            return None
        return History(
            partial(read_event_log, self._sources.pool, row["tenant_id"], self.job_id),
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
        async with self._sources.turns.turn(tenant_id):
            position = await queue_position(self._sources.pool, tenant_id, self.job_id)
        if position is None or position == self._position:
            return None
        self._position = position
        return make_event(UNNUMBERED, EventType.QUEUED, **queue_object(self._row, position))


def _follows(events: Sequence[Event], cursor: int) -> bool:
    """Whether the first event goes on where the cursor is, or restates what is before it."""
    first = events[0] if events else None
    return first is None or first.seq == cursor + 1 or first.type == EventType.GAP
