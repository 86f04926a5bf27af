"""The re-hinter goes on when Redis is away, and hints anew when Redis lost its data."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from uuid import UUID

import pytest
import redis

from cli.stack.database import DatabaseUrls
from store.loops import PostgresLoop
from tasks.app import app
from tasks.ids import uuid7
from tasks.inference import Hint, num_tickets, send_hints
from tasks.keys import HINT_EPOCH
from tasks.queues import ServiceTier, queue_for
from tasks.settings import broker_transport_options
from tests.support.roles import Connections
from tests.support.rows import Rows
from tests.support.services import Services
from tests.support.waiting import wait_until
from workers.maintenance.redis_watch import RedisWatch
from workers.maintenance.rehinter import HintSender, LaneHints, Rehinter, Sent, send_missing

NOWHERE = "redis://127.0.0.1:1/0"
LANE = ("demo", ServiceTier.DEFAULT, 3)  # of all rows here
KEY = f"{broker_transport_options['global_keyprefix']}{queue_for(*LANE).name}"


class _Sent:
    """What was sent, in place of Redis."""

    def __init__(self) -> None:
        self.hints: list[Hint] = []

    def __call__(self, batch: Sequence[LaneHints]) -> Sent:
        self.hints += [hint for lane in batch for hint in lane.hints]
        return Sent()

    @property
    def job_ids(self) -> list[UUID]:
        return [hint.job_id for hint in self.hints]


@pytest.fixture
def client(services: Services) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(services.redis_url) as opened:
        opened.flushall()
        yield opened


@contextmanager
def _silent_server() -> Iterator[str]:
    """Accepts connections and never answers: a Redis that hangs."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"redis://127.0.0.1:{server.getsockname()[1]}/0"


@contextmanager
def _running(sender: HintSender) -> Iterator[HintSender]:
    sender.start()
    try:
        yield sender
    finally:
        sender.stop()


def test_a_lost_hint_is_sent_again(roles: Connections, rows: Rows) -> None:
    job = rows.job(rows.tenant(), hinted_ago_s=60)
    sent = _Sent()
    with _running(HintSender(sent)) as sender:
        Rehinter(RedisWatch(NOWHERE), sender).step(roles.worker)
        wait_until(lambda: sent.hints, what="the hint")

    [hint] = sent.hints
    assert (hint.job_id, hint.hint_count) == (job, 2)
    assert hint.task_id == f"{job.hex}.2"


def test_tickets_never_outnumber_the_jobs_that_wait(
    services: Services, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app.conf, "broker_write_url", services.redis_url)
    hints = [Hint(uuid7(), *LANE, number) for number in range(8)]
    send_hints(hints[:2])

    first, *others = (send_missing([LaneHints(LANE, 5, hints)]) for _ in range(3))

    assert first == Sent({LANE: 5}, [hint.job_id for hint in hints[3:]])
    assert others == [Sent({LANE: 5}, [hint.job_id for hint in hints])] * 2
    assert num_tickets([queue_for(*LANE)]) == [5]


def test_a_hint_that_was_held_back_is_sent_as_soon_as_its_lane_misses_a_ticket(
    services: Services,
    client: redis.Redis,
    roles: Connections,
    rows: Rows,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(app.conf, "broker_write_url", services.redis_url)
    job = rows.job(rows.tenant(), hinted_ago_s=60)
    surplus = Hint(uuid7(), *LANE)
    send_hints([surplus])
    with _running(HintSender()) as sender:
        rehinter = Rehinter(RedisWatch(NOWHERE), sender)
        rehinter.step(roles.worker)
        wait_until(sender.num_tickets, what="a look at the lane")
        rehinter.step(roles.worker)
        held_back = rows.one("SELECT hinted_at FROM jobs")["hinted_at"]

        client.delete(KEY)
        wait_until(lambda: rehinter.step(roles.worker) or client.exists(KEY), what="the ticket")

    assert held_back is None
    [ticket] = client.lrange(KEY, 0, -1)
    assert json.loads(ticket)["headers"]["id"].startswith(job.hex)


def test_a_hint_is_sent_only_after_its_commit(
    database: DatabaseUrls, roles: Connections, rows: Rows
) -> None:
    rows.job(rows.tenant(), hinted_ago_s=60)
    counts: list[int] = []

    def look(_: Sequence[LaneHints]) -> Sent:
        counts.append(rows.one("SELECT hint_count FROM jobs")["hint_count"])
        return Sent()

    with _running(HintSender(look)) as sender:
        Rehinter(RedisWatch(NOWHERE), sender).step(roles.worker)
        wait_until(lambda: counts, what="the hint")

    assert counts == [2]


def test_a_redis_that_is_down_or_hangs_does_not_stop_the_loop(
    database: DatabaseUrls, rows: Rows
) -> None:
    tenant = rows.tenant()
    hanging = threading.Event()

    def hang(_: Sequence[LaneHints]) -> Sent:
        assert hanging.wait(30)
        return Sent()

    with _silent_server() as url, _running(HintSender(hang)) as sender:
        watch = RedisWatch(url)
        watch.start()
        loop = PostgresLoop(
            "rehinter", database.worker, Rehinter(watch, sender).step, interval_s=0.01
        )
        loop.start()
        try:
            for _ in range(20):
                rows.job(tenant, hinted_ago_s=60)
                wait_until(lambda: _num_unhinted(rows) == 0, timeout_s=2.0, what="the next hint")
        finally:
            hanging.set()
            loop.stop()
            watch.stop()


def _num_unhinted(rows: Rows) -> int:
    return int(rows.one("SELECT count(*) AS n FROM jobs WHERE hint_count = 1")["n"])


def test_a_sender_that_fails_goes_on_with_the_next_batch(roles: Connections, rows: Rows) -> None:
    sent = _Sent()
    calls: list[int] = []

    def fail_once(batch: Sequence[LaneHints]) -> Sent:
        calls.append(1)
        if len(calls) == 1:
            raise redis.ConnectionError("away")
        return sent(batch)

    with _running(HintSender(fail_once)) as sender:
        rehinter = Rehinter(RedisWatch(NOWHERE), sender)
        rows.job(rows.tenant(), hinted_ago_s=60)
        rehinter.step(roles.worker)
        second = rows.job(rows.tenant(), hinted_ago_s=60)
        rehinter.step(roles.worker)
        wait_until(lambda: sent.hints, what="the second batch")

    assert sent.job_ids == [second]


def test_a_redis_that_lost_its_data_gets_all_hints_anew(
    services: Services, client: redis.Redis, roles: Connections, rows: Rows
) -> None:
    tenant, sent = rows.tenant(), _Sent()
    watch = RedisWatch(services.redis_url)
    with _running(HintSender(sent)) as sender:
        rehinter = Rehinter(watch, sender)
        watch.look()
        rehinter.step(roles.worker)
        epoch = client.get(HINT_EPOCH)
        jobs = {rows.job(tenant) for _ in range(5)}
        watch.look()
        rehinter.step(roles.worker)
        assert sent.hints == []

        client.flushall()
        watch.look()
        rehinter.step(roles.worker)
        wait_until(lambda: len(sent.hints) == 5, what="the hints")

    assert set(sent.job_ids) == jobs
    assert client.get(HINT_EPOCH) not in (None, epoch)
    watch.look()
    assert watch.lost_hints() is None


def test_a_sender_that_fails_knows_no_lane_any_more(roles: Connections, rows: Rows) -> None:
    looks: list[int] = []

    def fail_later(_: Sequence[LaneHints]) -> Sent:
        looks.append(1)
        if len(looks) > 1:
            raise redis.ConnectionError("away")
        return Sent({LANE: 7})

    with _running(HintSender(fail_later)) as sender:
        rows.job(rows.tenant(), hinted_ago_s=60)
        rehinter = Rehinter(RedisWatch(NOWHERE), sender)
        rehinter.step(roles.worker)
        wait_until(lambda: sender.num_tickets() == {LANE: 7}, what="a look at the lane")
        rehinter.step(roles.worker)
        wait_until(lambda: sender.num_tickets() == {}, what="a look that failed")


def test_the_new_epoch_begins_only_after_the_hints_are_forgotten(
    services: Services, client: redis.Redis
) -> None:
    """A crash in between must not make an emptied Redis look whole."""
    watch = RedisWatch(services.redis_url)

    watch.look()

    assert watch.lost_hints() == float("inf")
    assert client.get(HINT_EPOCH) is None
    watch.forgotten()
    assert client.get(HINT_EPOCH) is not None


def test_a_second_watch_trusts_the_epoch_it_finds(services: Services, client: redis.Redis) -> None:
    client.set(HINT_EPOCH, "word")
    watch = RedisWatch(services.redis_url)

    watch.look()

    assert watch.lost_hints() is None


def test_an_outage_without_loss_costs_only_the_hints_of_the_outage(
    services: Services, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.set(HINT_EPOCH, "word")
    watch = RedisWatch(services.redis_url)
    watch.look()

    def refuse(_: str) -> bytes:
        raise redis.ConnectionError("away")

    with monkeypatch.context() as patch:
        patch.setattr(watch._redis, "get", refuse)
        watch.look()
        assert watch.lost_hints() is None
    watch.look()

    within_s = watch.lost_hints()
    assert within_s is not None
    assert within_s < 60


def test_a_hanging_redis_costs_a_look_its_timeout(services: Services) -> None:
    with _silent_server() as url:
        watch = RedisWatch(url)
        began = time.monotonic()

        watch.look()

    assert time.monotonic() - began < 3.0
    assert watch.lost_hints() is None
