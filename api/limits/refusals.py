"""Remembers requests that were refused, so that their retries aren't taken for others'.

A library's retry is known by its request alone, so it gets the job of the newest equal one. When
what is tried again was refused and has no job, that would be the answer of an earlier call.
"""

from __future__ import annotations

from uuid import UUID

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from tasks.keys import REFUSAL_TTL_MS, refused_request

log = structlog.get_logger(__name__)


class Refusals:
    """One an API process. Best effort: never raises for Redis."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def note(self, request_hash: bytes, job_id: UUID) -> None:
        """The job that a request would have been; its id tells when."""
        try:
            await self._redis.set(refused_request(request_hash), job_id.bytes, px=REFUSAL_TTL_MS)
        except (RedisError, OSError) as error:
            log.warning("refusal_not_noted", error=type(error).__name__)

    async def latest(self, request_hash: bytes) -> UUID | None:
        """The job that an equal request would have been, had it not been refused lately."""
        try:
            job_id = await self._redis.get(refused_request(request_hash))
        except (RedisError, OSError) as error:
            log.warning("refusal_not_read", error=type(error).__name__)
            return None
        return UUID(bytes=job_id) if isinstance(job_id, bytes) else None
