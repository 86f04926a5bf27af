"""The reaper: takes jobs from dead workers and ends those that waited too long."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from uuid import UUID

import structlog
from psycopg import Error as DatabaseError

from store import reaping
from store.apart import apart, at_once_or_apart
from store.aside import Aside
from store.faults import is_units, reason
from store.leases import LEASE_S
from store.pools import DictConnection
from workers.maintenance import metrics
from workers.maintenance.kinds import look_after

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
        """Reap once. True if there may be more.

        Those whose workers died come first: whoever waits in the queue waits a while longer.
        """
        is_in_grace = self._is_in_grace()
        lost, waiting = reaping.LOST, reaping.WAITING
        found = [
            None if is_in_grace else self._reap_sort(connection, lost),
            self._reap_sort(connection, waiting),
        ]
        if not is_in_grace:
            look_after("dead_leases", lambda: self._forget_leases(connection))
        self._last_step = self._clock()
        if found == [None, None] and not is_in_grace:
            self._begin_grace()  # a Postgres that is too slow for all of it may have been for beats
        return any(jobs is not None and len(jobs) == reaping.MAX_JOBS for jobs in found)

    def _reap_sort(
        self, connection: DictConnection, sort: reaping.Sort
    ) -> list[reaping.Reaped] | None:
        return look_after(f"reap_{sort.name}", lambda: self._reap(connection, sort))

    def _is_in_grace(self) -> bool:
        if self._clock() - self._last_step > OUTAGE_S:
            self._begin_grace()
        return self._clock() < self._grace_until

    def _begin_grace(self) -> None:
        now = self._clock()
        self._grace_until = now + GRACE_S
        metrics.GRACES.inc()
        log.warning("reaper_grace", outage_s=round(now - self._last_step, 1), grace_s=GRACE_S)

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
        except DatabaseError as error:  # it stays aside, and is tried again ever later
            if not is_units(error):
                raise
            log.error("job_not_ended", job_id=str(job_id), error=reason(error))


def _report(found: str, reaped: Sequence[reaping.Reaped]) -> None:
    for job in reaped:
        metrics.REAPED.labels(found, job.verdict).inc()
        log.warning("job_reaped", job_id=str(job.job_id), attempt=job.attempt, verdict=job.verdict)
