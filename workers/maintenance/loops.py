"""Starts and ends the loops with the Celery worker."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from celery import bootsteps
from celery.signals import worker_init

from store.loops import PostgresLoop
from store.settings import DatabaseSettings, WebhookSettings
from tasks.logs import configure_logs
from tasks.metrics import serve_metrics
from tasks.settings import RedisSettings
from tasks.webhook_urls import UrlPolicy
from workers.maintenance import deserter, file_sweeper, nudger, purger, reaper, rehinter
from workers.maintenance.beat import BeatWatch
from workers.maintenance.redis_watch import RedisWatch
from workers.maintenance.webhooks.sender import WebhookSender


class Service(Protocol):
    """A thread that can be ended."""

    def start(self) -> None: ...
    def stop(self) -> None: ...


def new_services(database_url: str, redis_url: str) -> list[Service]:
    """Every thread of a maintenance worker, not yet started."""
    watch = RedisWatch(redis_url)
    sender = rehinter.HintSender()
    rehint = rehinter.Rehinter(watch, sender)
    sweeper = file_sweeper.FileSweeper()
    deserted = deserter.Deserter(RedisSettings().stream)
    purge = purger.Purger(RedisSettings().stream)
    return [
        watch,
        sender,
        PostgresLoop("reaper", database_url, reaper.Reaper().step, interval_s=reaper.INTERVAL_S),
        PostgresLoop("rehinter", database_url, rehint.step, interval_s=rehinter.INTERVAL_S),
        PostgresLoop("deserter", database_url, deserted.step, interval_s=deserter.INTERVAL_S),
        PostgresLoop("nudger", database_url, nudger.nudge, interval_s=nudger.INTERVAL_S),
        PostgresLoop("files", database_url, sweeper.step, interval_s=file_sweeper.INTERVAL_S),
        PostgresLoop("purger", database_url, purge.step, interval_s=purger.INTERVAL_S),
        WebhookSender(database_url, UrlPolicy(WebhookSettings().allow_private)),
    ]


class Loops(bootsteps.StartStopStep):
    """Starts the threads after beat's process is forked off, and before the worker waits for Redis:
    the loops must run when Redis is away.
    """

    requires: ClassVar[set[str]] = {
        "celery.worker.components:Pool",
        "celery.worker.components:Beat",
    }

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        self._services: list[Service] = []

    def start(self, worker: Any) -> None:
        """Blocks for nothing."""
        self._services = new_services(DatabaseSettings().worker, RedisSettings().broker)
        if worker.beat is not None:
            self._services.append(BeatWatch(worker.beat))
        for service in self._services:
            service.start()
        serve_metrics()

    def stop(self, _worker: Any) -> None:
        """Each ends after the step at hand."""
        for service in self._services:
            service.stop()


@worker_init.connect
def use_threads(sender: Any, **_: object) -> None:
    """Tasks run in this process: a forked child would hold copies of the loops' connections."""
    configure_logs()
    sender.pool_cls = "threads"
