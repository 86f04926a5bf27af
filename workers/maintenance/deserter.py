"""Ends jobs whose clients left together with the API process that would have noticed.

Whoever waits for a job is subscribed to its channel through some API process. A job that had
listeners, and has had none for a while, is deserted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from uuid import UUID

import redis
import structlog
from psycopg import Error as DatabaseError

from store.apart import TURN_S
from store.attempts import ask_cancel
from store.faults import is_units
from store.pools import DictConnection
from store.reaping import jobs_that_need_clients
from tasks.keys import stream_channel
from workers.maintenance import metrics

INTERVAL_S = 5.0
# Well above the API's own grace, and the time that API processes take to subscribe anew after Redis
# was away.
GRACE_S = 30.0
MAX_JOBS = 5_000
TIMEOUT_S = 2.0

log = structlog.get_logger(__name__)


class Deserter:
    """Remembers who had listeners. What it forgets with its process runs to its end."""

    def __init__(self, redis_url: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._redis = redis.Redis.from_url(
            redis_url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S
        )
        self._clock = clock
        self._heard: set[UUID] = set()  # had listeners
        self._silent_since: dict[UUID, float] = {}

    def step(self, connection: DictConnection) -> bool:
        """One look at all of them. Never raises for a Redis that is away."""
        jobs = jobs_that_need_clients(connection, limit=MAX_JOBS)
        try:
            waiting = self._with_listeners(jobs)
        except redis.RedisError as error:
            log.warning("listeners_unknown", error=type(error).__name__)
            self._silent_since.clear()
            return False
        give_up_at = self._clock() + TURN_S
        for job_id in self._deserted(jobs, waiting):
            if self._clock() < give_up_at:  # else in the next step
                self._cancel(connection, job_id)
        return False

    def _cancel(self, connection: DictConnection, job_id: UUID) -> None:
        try:
            ask_cancel(connection, job_id, by="user")
        except DatabaseError as error:  # one job's boundary
            if not is_units(error):
                raise
            self._silent_since[job_id] = self._clock()  # behind the others, after another grace
            metrics.UNITS_FAILED.labels("deserted").inc()
            log.exception("deserted_job_not_cancelled", job_id=job_id.hex)
            return
        metrics.DESERTED.inc()
        log.info("deserted_job_cancelled", job_id=job_id.hex)

    def _with_listeners(self, jobs: list[UUID]) -> set[UUID]:
        if not jobs:
            return set()
        counts = self._redis.pubsub_numsub(*map(stream_channel, jobs))
        return {job_id for job_id, (_, num) in zip(jobs, counts, strict=True) if num}

    def _deserted(self, jobs: list[UUID], waiting: set[UUID]) -> list[UUID]:
        now = self._clock()
        self._heard = (self._heard & set(jobs)) | waiting
        silent = self._heard - waiting
        self._silent_since = {id_: self._silent_since.get(id_, now) for id_ in silent}
        return [id_ for id_, since in self._silent_since.items() if now - since >= GRACE_S]
