"""The purger: deletes jobs that were not to be stored, and finishes what deletions began, whatever
died in between: streams in Redis, emptied rows, the jobs and files of deleted batches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from uuid import UUID

import redis
import structlog
from psycopg import Error as DatabaseError

from store import deletion
from store.apart import TURN_S, apart
from store.aside import Aside
from store.faults import is_units, reason
from store.pools import DictConnection
from tasks.keys import STREAM_FINAL_TTL_MS
from tasks.stream import drop_logs
from workers.maintenance import metrics
from workers.maintenance.kinds import look_after

INTERVAL_S = 10.0
BATCH = 500
BATCHES_A_STEP = 20
LOOKED_AT_A_STEP = 100  # batches that may have jobs which were not to be stored
TIMEOUT_S = 2.0

# As long as a stream can be gone on with after its end. A row of a deleted job stays for so long
# too: until then somebody may be reading the end of its stream.
STREAM_S = STREAM_FINAL_TTL_MS / 1_000

_FIRST = UUID(int=0)

log = structlog.get_logger(__name__)

Work = Callable[[Sequence[UUID]], int]


class Purger:
    """A batch of each kind a step. Any number may run; every statement may be repeated. What can't
    be deleted is set aside, and tried again ever later.
    """

    def __init__(
        self,
        redis_url: str,
        *,
        keep_s: float = STREAM_S,
        batch: int = BATCH,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._redis = redis.Redis.from_url(
            redis_url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S
        )
        self._keep_s = keep_s
        self._batch = batch
        self._clock = clock
        self._aside = Aside(clock)
        self._unstored_after = _FIRST
        self._deleted_after = _FIRST

    def step(self, connection: DictConnection) -> bool:
        """True if there may be more."""
        kinds = {
            "unstored_jobs": self._delete_unstored,
            "unstored_jobs_of_batches": self._delete_unstored_of_batches,
            "deleted_batches": self._delete_batches,
            "deleted_jobs": self._remove_deleted,
        }
        has_more = [look_after(kind, partial(work, connection)) for kind, work in kinds.items()]
        return any(has_more)

    def _delete_unstored(self, connection: DictConnection) -> bool:
        ids = deletion.unstored_jobs(
            connection, keep_s=self._keep_s, batch=self._batch, aside=self._aside.ids()
        )
        self._delete(connection, "unstored_jobs", ids)
        return len(ids) == self._batch

    def _delete_unstored_of_batches(self, connection: DictConnection) -> bool:
        """Of batches that are over; those that go on need the results for their files."""
        found = deletion.batches_with_unstored(
            connection, after=self._unstored_after, batch=LOOKED_AT_A_STEP
        )
        self._unstored_after = found[-1][0] if len(found) == LOOKED_AT_A_STEP else _FIRST
        most, give_up_at = 0, self._clock() + TURN_S
        for batch_id in [id_ for id_, is_over in found if is_over]:
            if self._clock() >= give_up_at:
                self._unstored_after = batch_id  # the next round begins behind it
                return True
            ids = deletion.unstored_jobs(
                connection,
                keep_s=self._keep_s,
                batch=self._batch,
                batch_id=batch_id,
                aside=self._aside.ids(),
            )
            self._delete(connection, "unstored_jobs", ids)
            most = max(most, len(ids))
        return most == self._batch

    def _delete_batches(self, connection: DictConnection) -> bool:
        """Some jobs of each; its row goes once all of them are deleted."""
        found = deletion.deleted_batches(
            connection, after=self._deleted_after, batch=BATCHES_A_STEP
        )
        self._deleted_after = found[-1] if len(found) == BATCHES_A_STEP else _FIRST
        most, give_up_at = 0, self._clock() + TURN_S
        for batch_id in found:
            if self._clock() >= give_up_at:
                self._deleted_after = batch_id
                return True
            ids = deletion.jobs_of_batch(
                connection, batch_id, batch=self._batch, aside=self._aside.ids()
            )
            self._delete(connection, "jobs_of_batches", ids)
            if len(ids) < self._batch:
                self._remove_batch(connection, batch_id)
            most = max(most, len(ids))
        return most == self._batch or len(found) == BATCHES_A_STEP

    def _remove_batch(self, connection: DictConnection, batch_id: UUID) -> None:
        try:
            deletion.remove_batch(connection, batch_id)
        except DatabaseError as error:
            if not is_units(error):
                raise
            metrics.UNITS_FAILED.labels("deleted_batches").inc()
            # It comes again with the next round.
            log.error("batch_not_removed", batch_id=batch_id.hex, error=reason(error))

    def _remove_deleted(self, connection: DictConnection) -> bool:
        """Streams first: the rows are what they are found by."""
        ids = deletion.removable_jobs(
            connection, after_s=self._keep_s, batch=self._batch, aside=self._aside.ids()
        )
        try:
            if ids:
                drop_logs(self._redis, ids)
        except redis.RedisError as error:
            log.warning("streams_not_dropped", num_jobs=len(ids), error=type(error).__name__)
            return False
        self._apart("deleted_jobs", ids, lambda some: deletion.remove_jobs(connection, some))
        return len(ids) == self._batch

    def _delete(self, connection: DictConnection, what: str, ids: Sequence[UUID]) -> None:
        self._apart(what, ids, lambda some: deletion.delete_jobs(connection, some))

    def _apart(self, what: str, ids: Sequence[UUID], work: Work) -> None:
        """One job that can't be deleted keeps no other from it."""

        def set_aside(job_id: UUID, error: DatabaseError) -> None:
            metrics.UNITS_FAILED.labels(what).inc()
            num_tries = self._aside.add(job_id)
            log.error("job_not_deleted", job_id=job_id.hex, tries=num_tries, error=reason(error))

        metrics.EXPIRED.labels(what).inc(sum(apart(ids, work, set_aside)))
