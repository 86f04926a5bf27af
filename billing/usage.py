"""The billing worker: turns job outcomes into usage, ledger entries and resolved reservations.

Loaded by `celery -A tasks.app worker -P threads -I billing.usage -Q billing`. A hint only wakes the
settler thread; what is to be settled it reads from Postgres, at the latest every POLL_INTERVAL_S. So
hints that come together are settled together, and a lost one costs seconds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import structlog
from celery.signals import worker_init, worker_shutdown

from billing import metrics
from store import outcomes
from store.loops import PostgresLoop
from store.pools import DictConnection, connect
from store.reservations import release_orphans
from store.settings import DatabaseSettings
from tasks.app import app
from tasks.billing import EXPIRE_RESERVATIONS, SETTLE
from tasks.metrics import serve_metrics

POLL_INTERVAL_S = 2.0

# A hint waits this long for others before all are settled in one transaction.
GATHER_S = 0.005

# Jobs a transaction. It locks the accounts it charges until it commits, and admission waits for
# them: 2,000 jobs take some 50 ms.
MAX_JOBS_PER_TRANSACTION = 2_000

log = structlog.get_logger(__name__)


def settle_jobs(
    connection: DictConnection,
    job_ids: Sequence[UUID] | None = None,
    *,
    limit: int = MAX_JOBS_PER_TRANSACTION,
) -> int:
    """Settle these jobs, or any that wait, in one transaction. Returns how many.

    Safe to call twice and from many processes: a job has one usage row and one ledger entry.
    """
    began = time.perf_counter()
    settled = outcomes.settle(connection, job_ids=job_ids, limit=limit)
    metrics.SETTLE_SECONDS.observe(time.perf_counter() - began)
    metrics.SETTLED.inc(settled.num_settled)
    _report_anomalies(settled)
    return settled.num_settled


def settle_waiting(connection: DictConnection) -> bool:
    """One step of the settler. True if more may wait."""
    time.sleep(GATHER_S)
    return settle_jobs(connection) == MAX_JOBS_PER_TRANSACTION


def new_settler(url: str) -> PostgresLoop:
    """The settler thread, not yet started."""
    return PostgresLoop("settler", url, settle_waiting, interval_s=POLL_INTERVAL_S)


_settler: PostgresLoop | None = None


@app.task(name=SETTLE, ignore_result=True)  # type: ignore[untyped-decorator]
def settle(_job_id: str) -> None:
    """Wake the settler. The job named is among what it finds."""
    metrics.HINTS.inc()
    if _settler is not None:
        _settler.wake()


@app.task(name=EXPIRE_RESERVATIONS, ignore_result=True)  # type: ignore[untyped-decorator]
def expire_reservations() -> None:
    """Release reservations that no settling will resolve. There should be none."""
    with connect(DatabaseSettings().billing, application_name="millrace-expiry") as connection:
        num_released = release_orphans(connection)
    if num_released:
        metrics.ORPHAN_RESERVATION.inc(num_released)
        log.error("orphan_reservations_released", num_released=num_released)


@worker_init.connect  # type: ignore[untyped-decorator]
def start(sender: Any, **_: object) -> None:
    """Before the broker is reached: settling must go on when Redis is away.

    The settler is a thread of this process, so tasks must be too: a forked child has no settler.
    """
    global _settler
    sender.pool_cls = "threads"
    _settler = new_settler(DatabaseSettings().billing)
    _settler.start()
    serve_metrics()


@worker_shutdown.connect  # type: ignore[untyped-decorator]
def stop(**_: object) -> None:
    """End after the transaction at hand."""
    if _settler is not None:
        _settler.stop()


def _report_anomalies(settled: outcomes.Settled) -> None:
    for job_id in settled.over_reservation:
        metrics.OVER_RESERVATION.inc()
        log.error("charge_capped_by_reservation", job_id=str(job_id))
    for job_id in settled.without_reservation:
        metrics.WITHOUT_RESERVATION.inc()
        log.error("settled_without_reservation", job_id=str(job_id))
