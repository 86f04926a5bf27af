"""Handlers of the periodic tasks: what is kept for a while only, and partitions to come."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import structlog
from psycopg import Error as DatabaseError

from store import retention
from store.pools import DictConnection, connect
from store.retention import Expiry, Mark
from store.settings import DatabaseSettings, RetentionSettings
from tasks.app import app
from tasks.maintenance import PARTITIONS, RETENTION
from workers.maintenance import metrics

MONTHS_AHEAD = 3

BATCH = 1_000
TIME_PER_KIND_S = 60.0  # what is left then waits for the next run

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Run:
    """What came of one kind so far."""

    num_removed: int = 0
    failures: list[str] = field(default_factory=list)


class Retention:
    """Runs of all kinds. A kind that wasn't through in its time goes on from there in the next."""

    def __init__(self, *, batch: int = BATCH, time_per_kind_s: float = TIME_PER_KIND_S) -> None:
        self._batch = batch
        self._time_per_kind_s = time_per_kind_s
        self._after: dict[str, Mark | None] = {}

    def run(self) -> None:
        """Drop what is older than it is kept for. A kind that fails stops no other."""
        for kind, expiry in retention.expiries(RetentionSettings()).items():
            self._expire(kind, expiry)

    def _expire(self, kind: str, expiry: Expiry) -> None:
        """One of them, on a connection of its own. Never raises for what goes wrong in it."""
        run, failure = Run(), None
        try:
            with _connect() as connection:
                self._repeat(connection, kind, expiry, run)
            failure = _report(kind, run.failures)
        except Exception as error:  # the next run tries again
            failure = type(error).__name__
            log.exception("not_expired", what=kind)
        if failure is not None:
            metrics.EXPIRY_FAILURES.labels(kind).inc()
        with suppress(DatabaseError), _connect() as connection:
            retention.note_run(connection, kind, run.num_removed, failure)
        metrics.EXPIRED.labels(kind).inc(run.num_removed)
        log.info("expired", what=kind, num_rows=run.num_removed)

    def _repeat(self, connection: DictConnection, kind: str, expiry: Expiry, run: Run) -> None:
        """Batches until there is no more, for a bounded time."""
        give_up = time.monotonic() + self._time_per_kind_s
        while True:
            expired = expiry(connection, batch=self._batch, after=self._after.get(kind))
            run.num_removed += expired.num_removed
            run.failures += expired.failures
            self._after[kind] = expired.after
            if expired.after is None or time.monotonic() >= give_up:
                return


_retention = Retention()


@app.task(name=RETENTION, ignore_result=True)
def expire() -> None:
    """Drop what is older than it is kept for, in small batches."""
    _retention.run()


def _report(kind: str, failures: Sequence[str]) -> str | None:
    """Of what can't be removed: a word for `millrace status`."""
    if not failures:
        return None
    metrics.UNITS_FAILED.labels(kind).inc(len(failures))
    log.error("rows_not_expired", what=kind, num_rows=len(failures), first=failures[0])
    return f"{len(failures)} can't be removed: {failures[0]}"


@app.task(name=PARTITIONS, ignore_result=True)
def make_partitions() -> None:
    """Make next months' partitions."""
    with _connect() as connection:
        num = retention.ensure_partitions(connection, months_ahead=MONTHS_AHEAD)
    log.info("partitions_made", num_partitions=num)


def _connect() -> DictConnection:
    return connect(DatabaseSettings().worker, application_name="millrace-periodic")
