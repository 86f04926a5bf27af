"""The reaper: takes jobs from dead workers and ends those that waited too long."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from uuid import UUID

import structlog
from psycopg import Error as DatabaseError

from store import reaping
from store.apart import UNITS_FAULT, apart, at_once_or_apart, reason
from store.aside import Aside
from store.leases import LEASE_S
from store.pools import DictConnection
from workers.maintenance import metrics

INTERVAL_S = 1.0

# Postgres away for longer than this looks, from here, as if all workers had died.
OUTAGE_S = 5.0
GRACE_S = LEASE_S  # how long workers then have to beat first

# A job whose end failed so often ends as if nothing had been produced: what can't be written is
# most likely what an attempt left.
MAX_TRIES = 3

log = structlog.get_logger(__name__)


class Reaper:
    """One step a second. Holds still for a lease's time after it lost Postgres itself."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last_step = clock()
        self._grace_until = self._last_step
        self._aside = Aside(clock)

    def step(self, connection: DictConnection) -> bool:
        """Reap once. True if there may be more."""
        found = [self._reap(connection, reaping.WAITING)]
        if not self._is_in_grace():
            found.append(self._reap(connection, reaping.LOST))
            self._forget_leases(connection)
        self._last_step = self._clock()
        return reaping.MAX_JOBS in map(len, found)

    def _is_in_grace(self) -> bool:
        now = self._clock()
        if now - self._last_step > OUTAGE_S:
            self._grace_until = now + GRACE_S
            metrics.GRACES.inc()
            log.warning("reaper_grace", outage_s=round(now - self._last_step, 1), grace_s=GRACE_S)
        return now < self._grace_until

    def _reap(self, connection: DictConnection, sort: reaping.Sort) -> list[reaping.Reaped]:
        """One that can't be reaped keeps no other from it."""
        aside = self._aside.ids()
        parts = at_once_or_apart(
            lambda: sort.reap(connection, aside=aside),
            lambda: sort.waiting(connection, aside=aside),
            lambda some: sort.reap_these(connection, some),
            lambda job_id, error: self._set_aside(connection, sort, job_id, error),
        )
        reaped = [job for part in parts for job in part]
        _report(sort.name, reaped)
        return reaped

    def _forget_leases(self, connection: DictConnection) -> None:
        def set_aside(worker_id: UUID, error: DatabaseError) -> None:
            metrics.UNITS_FAILED.labels("dead_leases").inc()
            self._aside.add(worker_id)
            log.error("lease_not_forgotten", worker_id=worker_id.hex, error=reason(error))

        dead = reaping.dead_leases(connection, aside=self._aside.ids())
        apart(dead, lambda some: reaping.forget_leases(connection, some), set_aside)

    def _set_aside(
        self, connection: DictConnection, sort: reaping.Sort, job_id: UUID, error: DatabaseError
    ) -> None:
        metrics.UNITS_FAILED.labels(f"reap_{sort.name}").inc()
        num_tries = self._aside.add(job_id)
        log.error("job_not_reaped", job_id=str(job_id), tries=num_tries, error=reason(error))
        if num_tries >= MAX_TRIES:
            self._end_bare(connection, sort, job_id)

    def _end_bare(self, connection: DictConnection, sort: reaping.Sort, job_id: UUID) -> None:
        try:
            _report(sort.name, sort.reap_these(connection, [job_id], is_bare=True))
        except UNITS_FAULT as error:  # it stays aside, and is tried again ever later
            log.error("job_not_ended", job_id=str(job_id), error=reason(error))


def _report(found: str, reaped: Sequence[reaping.Reaped]) -> None:
    for job in reaped:
        metrics.REAPED.labels(found, job.verdict).inc()
        log.warning("job_reaped", job_id=str(job.job_id), attempt=job.attempt, verdict=job.verdict)
