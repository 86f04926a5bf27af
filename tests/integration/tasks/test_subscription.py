"""The API's connection that hears of many jobs, on each Redis at hand and in both protocols."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from api.streams import subscription as subscriptions
from api.streams.subscription import Message, Subscription
from tests.integration.tasks.conftest import RedisServer

LONG_S = 5.0


@pytest.fixture(params=[2, 3], ids=["resp2", "resp3"])
def url(request: pytest.FixtureRequest, redis_server: RedisServer) -> str:
    return f"{redis_server.server.url}?protocol={request.param}"


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[tuple[Subscription, Redis]]:
    """A subscription, and a client beside it."""
    async with Redis.from_url(url) as client:
        subscription = Subscription(client)
        await subscription.connect()
        yield subscription, client
        await subscription.close()


async def _read(subscription: Subscription, num: int) -> list[Message]:
    messages: list[Message] = []
    while len(messages) < num:
        messages += await subscription.read(LONG_S)
    return messages


async def test_commands_are_acknowledged_and_messages_come_in_order(url: str) -> None:
    async with connected(url) as (subscription, client):
        await subscription.subscribe("a", "b")
        acknowledged = await _read(subscription, 2)
        async with client.pipeline(transaction=False) as pipeline:
            for number in range(100):
                pipeline.publish("ab"[number % 2], number)
            await pipeline.execute()
        heard = await _read(subscription, 100)
        await subscription.unsubscribe("a")
        [left] = await _read(subscription, 1)

    assert acknowledged == [(b"subscribe", b"a", 1), (b"subscribe", b"b", 2)]
    assert heard == [(b"message", b"ab"[n % 2 : n % 2 + 1], b"%d" % n) for n in range(100)]
    assert left == (b"unsubscribe", b"a", 1)


async def test_a_ping_is_answered_with_and_without_channels(url: str) -> None:
    async with connected(url) as (subscription, _):
        await subscription.ping()
        [without] = await subscription.read(LONG_S)
        await subscription.subscribe("a")
        await subscription.ping()
        [_, with_one] = await _read(subscription, 2)

    assert without.kind == with_one.kind == b"pong"
    assert without.channel == with_one.channel == b""


async def test_a_silence_is_no_message_and_loses_none(url: str) -> None:
    async with connected(url) as (subscription, client):
        await subscription.subscribe("a")
        await _read(subscription, 1)
        silence = await subscription.read(0.01)
        await client.publish("a", "later")
        heard = await subscription.read(LONG_S)

    assert silence == []
    assert heard == [(b"message", b"a", b"later")]


async def test_messages_larger_than_a_read_come_whole_while_others_have_turns(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriptions, "READ_BYTES", 64)
    large, num_turns = b"x" * 100_000, 0

    async def count_turns() -> None:
        nonlocal num_turns
        while True:
            num_turns += 1
            await asyncio.sleep(0)

    async with connected(url) as (subscription, client):
        await subscription.subscribe("a")
        await _read(subscription, 1)
        await client.publish("a", large)
        other = asyncio.create_task(count_turns())
        heard = await subscription.read(LONG_S)
        other.cancel()

    assert heard == [(b"message", b"a", large)]
    assert num_turns > len(large) / 64 / 2


async def test_a_connection_that_redis_closes_is_over(url: str) -> None:
    async with connected(url) as (subscription, client):
        await subscription.subscribe("a")
        await _read(subscription, 1)

        await client.client_kill_filter(_type="pubsub")

        with pytest.raises((RedisError, OSError)):
            await subscription.read(LONG_S)


async def test_what_redis_refuses_is_an_error(url: str) -> None:
    async with connected(url) as (subscription, client):
        await client.acl_setuser(
            "deaf", enabled=True, nopass=True, reset_channels=True, categories=["+@all"]
        )
        deaf = Redis.from_url(url.replace("redis://", "redis://deaf:any@"))
        async with deaf:
            theirs = Subscription(deaf)
            await theirs.connect()
            await theirs.subscribe("a")
            with pytest.raises(RedisError, match="channel"):
                await theirs.read(LONG_S)
            await theirs.close()
        await client.acl_deluser("deaf")
        await subscription.ping()
        assert len(await subscription.read(LONG_S)) == 1


async def test_nothing_is_sent_on_a_connection_that_is_gone(url: str) -> None:
    """redis-py would make another, which hears nothing."""
    async with connected(url) as (subscription, _):
        await subscription.close()
        await subscription.close()

        with pytest.raises(RedisError):
            await subscription.ping()
