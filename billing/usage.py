"""The billing worker: turns job outcomes into usage, ledger entries and resolved reservations.

Loaded by `celery -A tasks.app worker -P threads -I billing.usage -Q billing`. A hint only wakes
the settler thread; what is to be settled it reads from Postgres, at the latest every
POLL_INTERVAL_S. So hints that come together are settled together, and a lost one costs seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar
from uuid import UUID

import structlog
from celery import bootsteps
from celery.signals import worker_init
from psycopg import Error as DatabaseError

from billing import metrics
from billing.giving_back import give_back
from store import outcomes
from store.apart import at_once_or_apart
from store.aside import Aside
from store.faults import is_passing, is_units, reason
from store.loops import PostgresLoop
from store.pools import DictConnection, connect
from store.reservations import release_orphans
from store.settings import DatabaseSettings
from tasks.app import app
from tasks.billing import EXPIRE_RESERVATIONS, SETTLE
from tasks.logs import configure_logs
from tasks.metrics import serve_metrics

POLL_INTERVAL_S = 2.0

# A hint waits this long for others before all are settled in one transaction.
GATHER_S = 0.005

# Jobs a transaction. It locks the accounts it charges until it commits, and admission waits for
# them: 2,000 jobs take some 50 ms.
MAX_JOBS_PER_TRANSACTION = 2_000

log = structlog.get_logger(__name__)


class Settling:
    """Settles jobs, `limit` at a time, and remembers those of which not even the failure can be
    noted.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        limit: int = MAX_JOBS_PER_TRANSACTION,
    ) -> None:
        self._aside = Aside(clock)
        self._limit = limit

    def step(self, connection: DictConnection) -> bool:
        """One step of the settler. True if more may wait."""
        time.sleep(GATHER_S)
        return self.settle(connection) == self._limit

    def settle(self, connection: DictConnection, job_ids: Sequence[UUID] | None = None) -> int:
        """See `settle_jobs`."""
        aside, limit = self._aside.ids(), self._limit
        return sum(
            at_once_or_apart(
                lambda: _settle_at_once(connection, job_ids, limit, aside),
                lambda: (
                    outcomes.due(connection, limit=limit, aside=aside)
                    if job_ids is None
                    else job_ids
                ),
                lambda some: _settle_at_once(connection, some, limit),
                lambda job_id, error: self._set_aside(connection, job_id, error),
            )
        )

    def _set_aside(self, connection: DictConnection, job_id: UUID, error: DatabaseError) -> None:
        why, is_set_aside = reason(error), False
        metrics.NOT_SETTLED.inc()
        if is_passing(error):  # it is settled in the end: nothing is wrong with what is owed
            self._aside.add(job_id)
        else:
            is_set_aside = self._note(connection, job_id, why)
        log.error("outcome_not_settled", job_id=str(job_id), error=why, is_set_aside=is_set_aside)

    def _note(self, connection: DictConnection, job_id: UUID, why: str) -> bool:
        """Whether it is set aside for good."""
        try:
            return outcomes.note_not_settled(connection, job_id, why)
        except DatabaseError as error:  # its row takes nothing: left alone for ever longer
            if not is_units(error):
                raise
            self._aside.add(job_id)
            return False


def settle_jobs(
    connection: DictConnection,
    job_ids: Sequence[UUID] | None = None,
    *,
    limit: int = MAX_JOBS_PER_TRANSACTION,
) -> int:
    """Settle these jobs, or any that wait, in one transaction. Returns how many.

    Safe to call twice and from many processes: a job has one usage row and one ledger entry. One
    that can't be settled holds up no other: it is tried a few times, then set aside.
    """
    return Settling(limit=limit).settle(connection, job_ids)


def _settle_at_once(
    connection: DictConnection,
    job_ids: Sequence[UUID] | None,
    limit: int,
    aside: Sequence[UUID] = (),
) -> int:
    began = time.perf_counter()
    settled = outcomes.settle(connection, job_ids=job_ids, limit=limit, aside=aside)
    metrics.SETTLE_SECONDS.observe(time.perf_counter() - began)
    metrics.SETTLED.inc(settled.num_settled)
    _report_anomalies(settled)
    give_back(connection, settled.rate_limited)
    return settled.num_settled


def new_settler(url: str) -> PostgresLoop:
    """The settler thread, not yet started."""
    return PostgresLoop("settler", url, Settling().step, interval_s=POLL_INTERVAL_S)


class Settler(bootsteps.StartStopStep):
    """The settler thread. Starts before the worker waits for Redis: settling needs Postgres only.

    It is a thread of this process, so tasks must run in it too: a forked child has no settler.
    """

    requires: ClassVar[set[str]] = {"celery.worker.components:Pool"}
    thread: ClassVar[PostgresLoop | None] = None

    def start(self, _worker: Any) -> None:
        """Blocks for nothing."""
        Settler.thread = new_settler(DatabaseSettings().billing)
        Settler.thread.start()
        serve_metrics()

    def stop(self, _worker: Any) -> None:
        """End after the transaction at hand."""
        if Settler.thread is not None:
            Settler.thread.stop()


app.steps["worker"].add(Settler)


@worker_init.connect
def use_threads(sender: Any, **_: object) -> None:
    """Whatever -P says."""
    configure_logs()
    sender.pool_cls = "threads"


@app.task(name=SETTLE, ignore_result=True)
def settle(_job_id: str) -> None:
    """Wake the settler. The job named is among what it finds."""
    metrics.HINTS.inc()
    if Settler.thread is not None:
        Settler.thread.wake()


@app.task(name=EXPIRE_RESERVATIONS, ignore_result=True)
def expire_reservations() -> None:
    """Release reservations that no settling will resolve. There should be none."""
    with connect(DatabaseSettings().billing, application_name="millrace-expiry") as connection:
        num_released = release_orphans(connection, set_aside=_leave_held)
    if num_released:
        metrics.ORPHAN_RESERVATION.inc(num_released)
        log.error("orphan_reservations_released", num_released=num_released)


def _leave_held(job_id: UUID, error: DatabaseError) -> None:
    metrics.NOT_RELEASED.inc()
    log.error("orphan_reservation_not_released", job_id=str(job_id), error=reason(error))


def _report_anomalies(settled: outcomes.Settled) -> None:
    for job_id in settled.over_reservation:
        metrics.OVER_RESERVATION.inc()
        log.error("charge_capped_by_reservation", job_id=str(job_id))
    for job_id in settled.without_reservation:
        metrics.WITHOUT_RESERVATION.inc()
        log.error("settled_without_reservation", job_id=str(job_id))
