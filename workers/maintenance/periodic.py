"""Handlers of the periodic tasks: what is kept for a while only, and partitions to come."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from store import retention
from store.pools import DictConnection, connect
from store.settings import DatabaseSettings
from tasks.app import app
from tasks.maintenance import PARTITIONS, RETENTION
from workers.maintenance import metrics

MONTHS_AHEAD = 3

BATCH = 500
TIME_PER_KIND_S = 60.0  # what is left then waits for the next run

log = structlog.get_logger(__name__)

Expiry = Callable[..., int]

_EXPIRIES: dict[str, Expiry] = {
    "event_logs": retention.expire_event_logs,
    "idempotency_keys": retention.expire_idempotency_keys,
    "webhook_deliveries": retention.expire_webhook_deliveries,
}


@app.task(name=RETENTION, ignore_result=True)
def expire() -> None:
    """Drop what is older than it is kept for, in small batches."""
    with _connect() as connection:
        for what, expiry in _EXPIRIES.items():
            num = repeat(connection, expiry, batch=BATCH)
            metrics.EXPIRED.labels(what).inc(num)
            log.info("expired", what=what, num_rows=num)


@app.task(name=PARTITIONS, ignore_result=True)
def make_partitions() -> None:
    """Make next months' partitions."""
    with _connect() as connection:
        num = retention.ensure_partitions(connection, months_ahead=MONTHS_AHEAD)
    log.info("partitions_made", num_partitions=num)


def repeat(connection: DictConnection, expiry: Expiry, *, batch: int) -> int:
    """Batches until one isn't full, for a bounded time. Returns how many rows."""
    total, give_up = 0, time.monotonic() + TIME_PER_KIND_S
    while time.monotonic() < give_up:
        num = expiry(connection, batch=batch)
        total += num
        if num < batch:
            break
    return total


def _connect() -> DictConnection:
    return connect(DatabaseSettings().worker, application_name="millrace-periodic")
