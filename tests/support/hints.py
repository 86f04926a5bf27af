"""Hints sent as fast as they are taken, through whatever happens to Redis."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from uuid import uuid4

import redis
from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from tasks.queues import named_queue
from tasks.settings import broker_transport_options

_MAX_WAITING = 200  # a queue


@dataclass(frozen=True, slots=True)
class Hints:
    """One task with its queue. The job named doesn't exist."""

    task: str
    queue: str
    has_job: bool = True

    def send(self, app: Celery) -> None:
        args = (uuid4().hex,) if self.has_job else ()
        app.send_task(self.task, args=args, queue=named_queue(self.queue), retry=False)


@contextmanager
def flood(redis_url: str, kinds: Sequence[Hints]) -> Iterator[None]:
    """Keeps every queue filled until the block ends."""
    stop = threading.Event()
    threads = [threading.Thread(target=_send, args=(redis_url, kind, stop)) for kind in kinds]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def send_one(redis_url: str, hints: Hints) -> None:
    """Raises what Celery raises if Redis is away."""
    hints.send(_sender(redis_url))


def num_waiting(client: redis.Redis, hints: Hints) -> int:
    """How many nobody has taken yet."""
    return int(client.llen(f"{broker_transport_options['global_keyprefix']}{hints.queue}"))


def _send(redis_url: str, hints: Hints, stop: threading.Event) -> None:
    app = _sender(redis_url)
    with redis.Redis.from_url(redis_url) as client:
        while not stop.is_set():
            with suppress(OperationalError, RedisError, OSError):
                while not stop.is_set() and num_waiting(client, hints) < _MAX_WAITING:
                    hints.send(app)
            stop.wait(0.005)


def _sender(redis_url: str) -> Celery:
    app = Celery("sender", broker=redis_url, set_as_current=False)
    app.conf.update(broker_transport_options=broker_transport_options, result_backend=None)
    return app
