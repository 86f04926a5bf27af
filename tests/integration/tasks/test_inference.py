"""Tickets are sent and counted over connections that the whole process shares."""

from __future__ import annotations

import threading
from contextlib import ExitStack

import pytest
import redis
from kombu.pools import producers

from tasks import inference
from tasks.app import app
from tasks.ids import uuid7
from tasks.inference import Hint, num_tickets, send_hints
from tasks.queues import ServiceTier, queue_for
from tests.support.services import Services

LANE = ("demo", ServiceTier.FLEX, 3)


def test_who_finds_all_connections_busy_waits_for_one(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app.conf, "broker_write_url", services.redis_url)
    monkeypatch.setattr(inference, "PUBLISH_TIMEOUT_S", 30.0)
    with redis.Redis.from_url(services.redis_url) as client:
        client.flushall()
    pool = producers[app.connection_for_write()]
    hints = [Hint(uuid7(), *LANE), Hint(uuid7(), *LANE)]

    with ExitStack() as busy:
        for _ in range(pool.limit):
            busy.enter_context(pool.acquire())
        sending = threading.Thread(target=send_hints, args=(hints,))
        sending.start()
        sending.join(timeout=0.2)
        is_waiting = sending.is_alive()
    sending.join(timeout=30)

    assert is_waiting
    assert num_tickets([queue_for(*LANE), queue_for("demo", ServiceTier.FLEX, 4)]) == [2, 0]
