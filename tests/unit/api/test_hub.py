"""What becomes of the connection that all streams share."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import cast
from uuid import uuid4

from redis.asyncio import Redis

from api.streams.hub import StreamHub
from store.pools import AsyncPool
from tasks.keys import stream_channel


class _SlowPubSub:
    """Takes its time with a subscription."""

    def __init__(self) -> None:
        self.is_read = asyncio.Event()
        self.is_asked = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.subscribed: list[str] = []
        self.num_cancelled = 0

    async def connect(self) -> None:
        return None

    async def subscribe(self, *names: str) -> None:
        self.is_asked.set()
        try:
            await self.may_answer.wait()
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        self.subscribed += names

    async def get_message(self, timeout: float) -> None:
        self.is_read.set()
        await asyncio.Event().wait()

    async def aclose(self) -> None:
        return None


class _Redis:
    def __init__(self, pubsub: _SlowPubSub) -> None:
        self._pubsub = pubsub

    def pubsub(self) -> _SlowPubSub:
        return self._pubsub


async def test_a_listener_that_leaves_halfway_breaks_nobodys_connection_and_is_forgotten() -> None:
    pubsub, job_id = _SlowPubSub(), uuid4()
    hub = StreamHub(cast(AsyncPool, None), cast(Redis, _Redis(pubsub)))
    await hub.start()
    await pubsub.is_read.wait()

    async def watch() -> None:
        async with hub.watch(job_id):
            raise AssertionError("it was cancelled before")

    leaving = asyncio.create_task(watch())
    await pubsub.is_asked.wait()
    leaving.cancel()
    with suppress(asyncio.CancelledError):
        await leaving
    pubsub.may_answer.set()
    other = await hub.join(uuid4(), _Listener())
    await hub.stop()

    assert pubsub.num_cancelled == 0
    assert pubsub.subscribed == [stream_channel(job_id), other.name]
    assert not hub.has_listeners(job_id)


class _Listener:
    def wake(self) -> None:
        return None

    def wake_for_log(self) -> None:
        return None

    def wake_after_reconnect(self) -> None:
        return None

    def tick(self, now: float) -> None:
        return None
