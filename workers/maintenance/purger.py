"""The purger: deletes jobs that were not to be stored, and finishes what deletions began, whatever
died in between: streams in Redis, emptied rows, the jobs and files of deleted batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import redis
import structlog

from store import deletion
from store.pools import DictConnection
from tasks.keys import STREAM_FINAL_TTL_MS
from tasks.stream import drop_logs
from workers.maintenance import metrics

INTERVAL_S = 10.0
BATCH = 500
BATCHES_A_STEP = 20
TIMEOUT_S = 2.0

# As long as a stream can be gone on with after its end. A row of a deleted job stays for so long
# too: until then somebody may be reading the end of its stream.
STREAM_S = STREAM_FINAL_TTL_MS / 1_000

log = structlog.get_logger(__name__)


class Purger:
    """A batch of each a step. Any number may run; every statement may be repeated."""

    def __init__(self, redis_url: str, *, keep_s: float = STREAM_S) -> None:
        self._redis = redis.Redis.from_url(
            redis_url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S
        )
        self._keep_s = keep_s

    def step(self, connection: DictConnection) -> bool:
        """True if there may be more."""
        num_unstored = deletion.expire_unstored(connection, keep_s=self._keep_s, batch=BATCH)
        metrics.EXPIRED.labels("unstored_jobs").inc(num_unstored)
        num_of_batches = self._delete_batches(connection)
        ids = deletion.removable_jobs(connection, after_s=self._keep_s, batch=BATCH)
        is_removed = bool(ids) and self._remove(connection, ids)
        return BATCH in (num_unstored, num_of_batches) or (is_removed and len(ids) == BATCH)

    def _delete_batches(self, connection: DictConnection) -> int:
        """The most jobs that were deleted of one of them."""
        most = 0
        for batch_id in deletion.deleted_batches(connection, batch=BATCHES_A_STEP):
            num = deletion.delete_jobs_of_batch(connection, batch_id, batch=BATCH)
            metrics.EXPIRED.labels("jobs_of_batches").inc(num)
            if num < BATCH:
                deletion.remove_batch(connection, batch_id)
            most = max(most, num)
        return most

    def _remove(self, connection: DictConnection, ids: Sequence[UUID]) -> bool:
        """Streams first: the rows are what they are found by. False: Redis is away."""
        try:
            drop_logs(self._redis, ids)
        except redis.RedisError as error:
            log.warning("streams_not_dropped", num_jobs=len(ids), error=type(error).__name__)
            return False
        deletion.remove_jobs(connection, ids)
        metrics.EXPIRED.labels("deleted_jobs").inc(len(ids))
        return True
