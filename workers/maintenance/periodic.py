"""Handlers of the periodic tasks: what is kept for a while only, and partitions to come."""

from __future__ import annotations

import time
from contextlib import suppress

import structlog
from psycopg import Error as DatabaseError

from store import retention
from store.pools import DictConnection, connect
from store.retention import Expiry
from store.settings import DatabaseSettings, RetentionSettings
from tasks.app import app
from tasks.maintenance import PARTITIONS, RETENTION
from workers.maintenance import metrics

MONTHS_AHEAD = 3

BATCH = 1_000
TIME_PER_KIND_S = 60.0  # what is left then waits for the next run

log = structlog.get_logger(__name__)


@app.task(name=RETENTION, ignore_result=True)
def expire() -> None:
    """Drop what is older than it is kept for, in small batches. A failing kind stops no other."""
    for kind, expiry in retention.expiries(RetentionSettings()).items():
        expire_kind(kind, expiry)


def expire_kind(kind: str, expiry: Expiry) -> None:
    """One of them, on a connection of its own. Never raises for what goes wrong in it."""
    num, failure = 0, None
    try:
        with _connect() as connection:
            num = repeat(connection, expiry, batch=BATCH)
    except Exception as error:  # the next run tries again
        failure = type(error).__name__
        metrics.EXPIRY_FAILURES.labels(kind).inc()
        log.exception("not_expired", what=kind)
    with suppress(DatabaseError), _connect() as connection:
        retention.note_run(connection, kind, num, failure)
    metrics.EXPIRED.labels(kind).inc(num)
    log.info("expired", what=kind, num_rows=num)


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
