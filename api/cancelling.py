"""Ends jobs on behalf of their clients: those who ask, and those who left."""

from __future__ import annotations

import asyncio
from uuid import UUID

import structlog
from psycopg import Error as DatabaseError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from api import metrics
from api.job_view import is_terminal
from api.streams.hub import StreamHub
from store.jobs import JobRow, request_cancel
from store.pools import AsyncPool
from tasks.errors import JobNotFound, ServiceError
from tasks.jobs import OnDisconnect
from tasks.keys import cancel_channel, stream_channel

log = structlog.get_logger(__name__)


class Canceller:
    """One an API process; used on its event loop alone."""

    def __init__(self, pool: AsyncPool, redis: Redis, hub: StreamHub, *, grace_s: float) -> None:
        """`grace_s`: how long a client that left may take to come back."""
        self._pool = pool
        self._redis = redis
        self._hub = hub
        self._grace_s = grace_s
        self._waiting: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Give up waiting: jobs whose clients just left run on."""
        for task in self._waiting:
            task.cancel()
        await asyncio.gather(*self._waiting, return_exceptions=True)

    async def cancel(self, tenant_id: UUID, job_id: UUID) -> JobRow:
        """Ask for the end of a job; the row as it is then. Raises JobNotFound. Idempotent."""
        result = await request_cancel(self._pool, tenant_id, job_id, by="user")
        if result is None or result.row["deleted_at"] is not None:
            raise JobNotFound
        if result.worker_id is not None:
            await self._tell_worker(result.worker_id, job_id)
        if is_terminal(result.row):
            self._hub.note_over(job_id)
        return result.row

    def client_left(self, row: JobRow) -> None:
        """A client went before the end: cancel the job if it wants that and nobody comes back."""
        if row["on_disconnect"] != OnDisconnect.CANCEL:
            return
        task = asyncio.create_task(self._cancel_if_deserted(row["tenant_id"], row["id"]))
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)

    async def _cancel_if_deserted(self, tenant_id: UUID, job_id: UUID) -> None:
        await asyncio.sleep(self._grace_s)
        try:
            if await self._has_reader(job_id):
                return
            await self.cancel(tenant_id, job_id)
            metrics.jobs_deserted.inc()
        except (DatabaseError, RedisError, OSError, ServiceError) as error:
            # It runs to its end, and is billed for what it produces.
            log.warning("deserted_job_not_cancelled", error=type(error).__name__)

    async def _has_reader(self, job_id: UUID) -> bool:
        """Here or at another replica: each hub subscribes to the jobs that somebody listens to, and
        the subscriptions of a replica that died end with its connection.
        """
        if self._hub.has_listeners(job_id):
            return True
        # Our own subscription to a deserted channel ends within a tick or two, before the grace.
        [(_, num_subscribers)] = await self._redis.pubsub_numsub(stream_channel(job_id))
        return int(num_subscribers) > self._hub.is_subscribed(job_id)

    async def _tell_worker(self, worker_id: UUID, job_id: UUID) -> None:
        """Best effort: the worker's next beat reads the same from Postgres."""
        try:
            await self._redis.publish(cancel_channel(worker_id), job_id.hex)
        except RedisError as error:
            log.warning("cancel_not_published", error=type(error).__name__)
