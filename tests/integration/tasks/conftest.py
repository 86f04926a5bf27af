"""A Redis of each version at hand, and the two ends of a stream on it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest
import redis

from cli.stack.redis import EmbeddedRedis
from tasks import keys
from tasks.events import Event, EventType, make_event, parse_message
from tasks.ids import uuid7
from tasks.stream import Append, Reply, StreamWriter
from tests.support.services import redis_programs


def token(seq: int, text: str | None = None) -> Event:
    return make_event(
        seq, EventType.TOKEN, index=0, text=f" {seq}" if text is None else text, token_ids=[seq]
    )


def tokens(first: int, last: int, text: str | None = None) -> list[Event]:
    return [token(seq, text) for seq in range(first, last + 1)]


@dataclass
class RedisServer:
    """One server that tests may restart or lose."""

    server: EmbeddedRedis

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.server.url, socket_timeout=5, socket_connect_timeout=5)

    def restart(self) -> None:
        """The data survives if the server is persistent; its run id never does."""
        self.server.stop()
        self.server.start()


@dataclass
class StreamEnd:
    """One job's stream: writes, reads and hears."""

    client: redis.Redis
    writer: StreamWriter
    job_id: UUID

    def open(self, attempt: int, checkpoint_seq: int = 0) -> Reply:
        return self.writer.open(self.job_id, attempt, checkpoint_seq)

    def append(
        self,
        events: Sequence[Event],
        *,
        attempt: int = 1,
        is_final: bool = False,
        resets_log: bool = False,
    ) -> Reply:
        (reply,) = self.writer.append(
            [Append(self.job_id, attempt, events, is_final=is_final, resets_log=resets_log)]
        )
        return reply

    def log(self) -> list[Event]:
        return self.writer.read_log(self.job_id)

    def ttls_ms(self) -> tuple[int, int]:
        """Of the meta hash and of the log."""
        meta, log = keys.stream_meta(self.job_id), keys.stream_log(self.job_id)
        return int(self.client.pttl(meta)), int(self.client.pttl(log))

    def subscribe(self) -> redis.client.PubSub:
        """Acknowledged when this returns."""
        subscription: redis.client.PubSub
        subscription = self.client.pubsub()  # type: ignore[no-untyped-call]  # redis-py's gap
        subscription.subscribe(keys.stream_channel(self.job_id))
        assert subscription.get_message(timeout=5)["type"] == "subscribe"
        return subscription


def heard(subscription: redis.client.PubSub, num: int) -> list[Event]:
    """The next events published."""
    messages = [subscription.get_message(timeout=5) for _ in range(num)]
    assert all(message is not None for message in messages), f"fewer than {num} messages"
    return [parse_message(message["data"]) for message in messages]


@pytest.fixture(scope="session", params=redis_programs(), ids=lambda path: path.parent.parent.name)
def redis_server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    with tempfile.TemporaryDirectory(prefix="millrace-redis-") as folder:
        server = EmbeddedRedis(
            Path(folder), program=request.param, persistent=False, die_with_parent=True
        )
        server.start()
        yield RedisServer(server)
        server.stop()


@pytest.fixture(scope="session", params=redis_programs(), ids=lambda path: path.parent.parent.name)
def durable_redis(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """With an append-only file: a restart keeps the data."""
    with tempfile.TemporaryDirectory(prefix="millrace-redis-") as folder:
        server = EmbeddedRedis(Path(folder), program=request.param, die_with_parent=True)
        server.start()
        yield RedisServer(server)
        server.stop()


def _end(server: RedisServer) -> Iterator[StreamEnd]:
    with server.client() as client:
        yield StreamEnd(client, StreamWriter(client), uuid7())


@pytest.fixture
def stream(redis_server: RedisServer) -> Iterator[StreamEnd]:
    yield from _end(redis_server)


@pytest.fixture
def durable_stream(durable_redis: RedisServer) -> Iterator[StreamEnd]:
    yield from _end(durable_redis)
