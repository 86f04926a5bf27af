"""Live events of all jobs anybody in this process listens to, over one pub/sub connection.

Two tasks, however many streams there are: one reads the connection and makes it anew when it
breaks, one ticks. A channel that nobody listens to is left within a tick or two.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from uuid import UUID

import structlog
from psycopg import Error as DatabaseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from api import metrics
from api.streams.channel import Channel, Listener
from api.streams.subscription import Message, Subscription
from store.jobs import finished_jobs
from store.pools import AsyncPool
from tasks.events import parse_message

log = structlog.get_logger(__name__)

TICK_S = 1.0
TICKS_A_TURN = 1_000  # channels, which take a few ms
PING_AFTER_S = 5.0  # of silence; as long again without an answer, and the connection is dead
MAX_BACKOFF_S = 2.0
SUBSCRIBE_CHUNK = 500
FINISHED_CHUNK = 2_000  # ids a query


class StreamHub:
    """One an API process. Everything runs on its event loop."""

    def __init__(self, pool: AsyncPool, subscription: Callable[[], Subscription]) -> None:
        """`subscription` makes a connection, not connected yet: one at first and after each that
        broke.
        """
        self._pool = pool
        self._new_subscription = subscription
        self._channels: dict[UUID, Channel] = {}
        self._by_name: dict[bytes, Channel] = {}
        self._subscription: Subscription | None = None
        # Held while channels come and go, so that commands are sent in the order of the changes.
        self._lock = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def num_channels(self) -> int:
        """Jobs somebody listens to."""
        return len(self._channels)

    async def start(self) -> None:
        """Start both tasks. Redis may be away."""
        self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._tick())]

    async def stop(self) -> None:
        """End both tasks and the connection."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def join(self, job_id: UUID, listener: Listener) -> Channel:
        """Listen to a job. When Redis has acknowledged, the listener is woken to read the log.

        A command that is cancelled halfway would break the connection of all: it goes on for a
        caller that is gone, who then listens no more.
        """
        joining = asyncio.create_task(self._join(job_id, listener))
        try:
            return await asyncio.shield(joining)
        except asyncio.CancelledError:
            joining.add_done_callback(lambda _: self.leave(job_id, listener))
            raise

    async def _join(self, job_id: UUID, listener: Listener) -> Channel:
        async with self._lock:
            channel = self._channels.get(job_id)
            is_new = channel is None
            if channel is None:
                channel = Channel(job_id, time.monotonic())
                self._channels[job_id] = self._by_name[channel.name.encode()] = channel
            channel.listeners.add(listener)
            if is_new:
                await self._subscribe([channel.name])
            return channel

    def leave(self, job_id: UUID, listener: Listener) -> None:
        """Stop listening. Safe to call twice."""
        if channel := self._channels.get(job_id):
            channel.listeners.discard(listener)

    def has_listeners(self, job_id: UUID) -> bool:
        """Whether anybody in this process listens to a job."""
        channel = self._channels.get(job_id)
        return channel is not None and bool(channel.listeners)

    def is_subscribed(self, job_id: UUID) -> bool:
        """Whether this process's connection is subscribed to a job, deserted or not."""
        channel = self._channels.get(job_id)
        return channel is not None and channel.is_subscribed

    def note_over(self, job_id: UUID) -> None:
        """This process has ended the job itself: its listeners needn't wait to be told."""
        if channel := self._channels.get(job_id):
            channel.note_over()

    @asynccontextmanager
    async def watch(self, job_id: UUID) -> AsyncIterator[Channel]:
        """Listen to a job's end alone: wait for `channel.over`."""
        listener = _EndListener()
        channel = await self.join(job_id, listener)
        try:
            yield channel
        finally:
            self.leave(job_id, listener)

    async def _subscribe(self, names: Iterable[str]) -> None:
        if self._subscription is None:
            return  # `_listen` subscribes to everything once it is connected
        with suppress(RedisError, OSError):  # `_listen` notices too, and starts over
            await self._subscription.subscribe(*names)

    async def _listen(self) -> None:
        backoff_s = 0.05
        while True:
            try:
                async with self._connected() as subscription:
                    backoff_s = 0.05
                    await self._read(subscription)
            except (RedisError, OSError) as error:
                log.warning("hub_disconnected", error=type(error).__name__)
            except Exception:
                log.exception("hub_failed")  # a new connection has all that this one may have lost
            metrics.hub_reconnects.inc()
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Subscription]:
        subscription = self._new_subscription()
        try:
            await subscription.connect()
            async with self._lock:
                self._subscription = subscription
                names = [channel.name for channel in self._channels.values()]
                for begin in range(0, len(names), SUBSCRIBE_CHUNK):
                    await subscription.subscribe(*names[begin : begin + SUBSCRIBE_CHUNK])
            yield subscription
        finally:
            self._subscription = None
            for channel in self._channels.values():
                channel.is_subscribed = False
            await subscription.close()

    async def _read(self, subscription: Subscription) -> None:
        num_silences = 0
        while True:
            messages = await subscription.read(PING_AFTER_S)
            if messages:
                num_silences = 0
                self._handle(messages, time.monotonic())
                continue
            num_silences += 1
            if num_silences > 1:
                raise RedisConnectionError("no answer to a ping")
            await subscription.ping()

    def _handle(self, messages: Iterable[Message], now: float) -> None:
        for kind, name, data in messages:
            channel = self._by_name.get(name)
            if channel is None:
                continue  # an answer to a ping, or a message to a channel just left
            if kind == b"message":
                channel.hear(parse_message(data), now)
            elif kind == b"subscribe":
                channel.confirm_subscription()

    async def _tick(self) -> None:
        for turn in itertools.count():
            await asyncio.sleep(TICK_S)
            try:
                await self._leave_deserted()
                now = time.monotonic()
                for number, channel in enumerate(tuple(self._channels.values()), start=1):
                    channel.tick(now)
                    if number % TICKS_A_TURN == 0:
                        await asyncio.sleep(0)
                if turn % 2:
                    await self._ask_for_ends(now)
            except (DatabaseError, RedisError, OSError) as error:
                log.warning("hub_tick_failed", error=type(error).__name__)
            except Exception:
                log.exception("hub_tick_failed")  # the ticker is what ends stuck streams

    async def _leave_deserted(self) -> None:
        async with self._lock:
            deserted = [channel for channel in self._channels.values() if not channel.listeners]
            for channel in deserted:
                del self._channels[channel.job_id]
                del self._by_name[channel.name.encode()]
            if deserted and self._subscription:
                await self._subscription.unsubscribe(*(channel.name for channel in deserted))

    async def _ask_for_ends(self, now: float) -> None:
        """One query for all silent streams: a worker may die between its commit and its last event,
        and a job that ends in the queue has nobody to say so.
        """
        silent = deque(
            job_id for job_id, channel in self._channels.items() if channel.is_silent(now)
        )
        while silent:
            ids = [silent.popleft() for _ in range(min(len(silent), FINISHED_CHUNK))]
            for job_id in await finished_jobs(self._pool, ids):
                self.note_over(job_id)


class _EndListener:
    """Has no use for events; the channel sets `over` by itself."""

    def wake(self) -> None:
        return None

    def wake_for_log(self) -> None:
        return None

    def wake_after_reconnect(self) -> None:
        return None

    def tick(self, now: float) -> None:
        return None
