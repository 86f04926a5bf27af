"""What is left of a connection to Redis after Redis died under it."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import redis
from kombu import Connection, Consumer, Exchange, Queue
from kombu.asynchronous import Hub
from kombu.transport import resolve_transport

from tasks import broker
from tasks.app import app
from tasks.settings import broker_transport_options
from tests.integration.tasks.conftest import RedisServer
from tests.support.waiting import wait_until

TASKS = Queue("tasks", Exchange("tasks"), routing_key="tasks")
# As Celery's remote control: every worker listens, and takes its queue with it when it closes.
CONTROL = Queue("control", Exchange("control", type="fanout"), auto_delete=True)
COLLECT_TIMEOUT_S = 5.0


@dataclass
class Worker:
    """A connection as a worker has it: two channels, and a message not yet acknowledged."""

    connection: Connection
    message: Any

    def wait_for_the_next_message(self) -> None:
        """BRPOP is sent; its answer will not come."""
        self.connection.transport.cycle.on_poll_start()

    def close(self) -> None:
        """In the two passes that Celery does it in, ignoring what Celery ignores."""
        errors = self.connection.connection_errors + self.connection.channel_errors
        self.connection.collect(socket_timeout=COLLECT_TIMEOUT_S)
        with contextlib.suppress(errors):
            self.connection.close()


@pytest.fixture
def worker(redis_server: RedisServer) -> Iterator[Worker]:
    taken: list[Any] = []
    with Connection(
        redis_server.server.url,
        transport=broker.Transport,
        transport_options=broker_transport_options,
    ) as connection:
        Consumer(connection.default_channel, [TASKS], on_message=taken.append).consume()
        control = connection.channel()
        Consumer(control, [CONTROL], on_message=taken.append).consume()
        connection.Producer().publish({}, exchange=TASKS.exchange, routing_key="tasks")
        while not taken:
            connection.drain_events(timeout=5)
        yield Worker(connection, taken[0])
        control.close()


@pytest.fixture
def dead_redis(worker: Worker, redis_server: RedisServer) -> Iterator[None]:
    worker.wait_for_the_next_message()
    assert redis_server.server.child is not None
    redis_server.server.child.kill()
    yield
    redis_server.server.start()


def test_every_connection_of_the_application_is_of_this_transport() -> None:
    assert app.connection().transport_cls == "redis"
    assert resolve_transport("redis") is resolve_transport("rediss") is broker.Transport


@pytest.mark.usefixtures("dead_redis")
def test_closing_with_a_message_not_acknowledged_raises_nothing_but_connection_errors(
    worker: Worker,
) -> None:
    worker.close()

    assert not worker.connection.connected


@pytest.mark.usefixtures("dead_redis")
def test_acknowledging_after_the_connection_closed_is_a_connection_error(worker: Worker) -> None:
    worker.close()

    with pytest.raises(worker.connection.connection_errors):
        worker.message.ack()


@pytest.fixture
def refusing_redis(worker: Worker, redis_server: RedisServer) -> Iterator[redis.Redis]:
    """It answers and refuses all writes, as one whose disk is full. The client sees who is in."""
    worker.wait_for_the_next_message()
    with redis_server.client() as client:
        client.config_set("min-replicas-to-write", 1)
        try:
            yield client
        finally:
            client.config_set("min-replicas-to-write", 0)


def test_closing_leaves_no_connection_to_a_redis_that_takes_no_writes(
    worker: Worker, refusing_redis: redis.Redis
) -> None:
    assert len(refusing_redis.client_list()) > 1

    worker.close()

    wait_until(lambda: len(refusing_redis.client_list()) == 1)


@pytest.mark.usefixtures("worker")
def test_a_connection_that_can_not_be_registered_is_closed(
    redis_server: RedisServer, refusing_redis: redis.Redis
) -> None:
    before = len(refusing_redis.client_list())
    connection = Connection(
        redis_server.server.url,
        transport=broker.Transport,
        transport_options=broker_transport_options,
    )
    connection.connect()
    assert len(refusing_redis.client_list()) > before

    with pytest.raises(connection.channel_errors):
        connection.transport.register_with_event_loop(connection.connection, Hub())

    wait_until(lambda: len(refusing_redis.client_list()) == before)


def test_reconnecting_again_and_again_leaves_nothing_behind(redis_server: RedisServer) -> None:
    hub = Hub()
    transports = [_connect_and_lose(hub, redis_server) for _ in range(8)]

    assert hub.on_tick == set()
    assert all(entry.canceled for _, _, entry in hub.timer.queue)
    hub.timer.clear()  # as by and by, when they would have been due
    gc.collect()
    assert [transport() for transport in transports] == [None] * 8


def _connect_and_lose(hub: Hub, redis_server: RedisServer) -> weakref.ref[broker.Transport]:
    """As Celery does when Redis ends the connection: collect, close, and a new one. Returns its
    transport, if it is left.
    """
    connection = Connection(
        redis_server.server.url,
        transport=broker.Transport,
        transport_options=broker_transport_options,
    )
    connection.connect()
    Consumer(connection.default_channel, [TASKS], on_message=print).consume()
    transport = weakref.ref(connection.transport)
    connection.transport.register_with_event_loop(connection.connection, hub)
    for tick in list(hub.on_tick):
        tick()
    with redis_server.client() as client:
        for kind in ("normal", "pubsub"):
            client.client_kill_filter(_type=kind, skipme=True)
    connection.collect(socket_timeout=COLLECT_TIMEOUT_S)
    with contextlib.suppress(connection.connection_errors + connection.channel_errors):
        connection.close()
    hub.reset()
    return transport
