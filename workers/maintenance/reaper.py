"""The reaper: takes jobs from dead workers and ends those that waited too long."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import structlog

from store import reaping
from store.apart import UNITS_FAULT
from store.leases import LEASE_S
from store.pools import DictConnection
from workers.maintenance import metrics

INTERVAL_S = 1.0

# Postgres away for longer than this looks, from here, as if all workers had died.
OUTAGE_S = 5.0
GRACE_S = LEASE_S  # how long workers then have to beat first

log = structlog.get_logger(__name__)


class Reaper:
    """One step a second. Holds still for a lease's time after it lost Postgres itself."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last_step = clock()
        self._grace_until = self._last_step

    def step(self, connection: DictConnection) -> bool:
        """Reap once. True if there may be more."""
        found = [_alone(connection, "queued", reaping.reap_waiting)]
        if not self._is_in_grace():
            found.append(_alone(connection, "in_progress", reaping.reap_lost))
            reaping.delete_dead_leases(connection)
        self._last_step = self._clock()
        return reaping.MAX_JOBS in map(len, found)

    def _is_in_grace(self) -> bool:
        now = self._clock()
        if now - self._last_step > OUTAGE_S:
            self._grace_until = now + GRACE_S
            metrics.GRACES.inc()
            log.warning("reaper_grace", outage_s=round(now - self._last_step, 1), grace_s=GRACE_S)
        return now < self._grace_until


def _alone(
    connection: DictConnection, found: str, reap: Callable[[DictConnection], list[reaping.Reaped]]
) -> list[reaping.Reaped]:
    """What fails here must not keep jobs of the other kind from being reaped."""
    try:
        reaped = reap(connection)
    except UNITS_FAULT:
        metrics.UNITS_FAILED.labels(f"reap_{found}").inc()
        log.exception("reaping_failed", found=found)
        return []
    _report(found, reaped)
    return reaped


def _report(found: str, reaped: Sequence[reaping.Reaped]) -> None:
    for job in reaped:
        metrics.REAPED.labels(found, job.verdict).inc()
        log.warning("job_reaped", job_id=str(job.job_id), attempt=job.attempt, verdict=job.verdict)
