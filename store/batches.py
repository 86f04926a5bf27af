"""Batches as the API reads, makes and cancels them. Every query names the tenant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from store.pools import AsyncPool, as_tenant

BatchRow = dict[str, Any]

_CREATE = """
INSERT INTO batches (id, tenant_id, api_key_id, endpoint, completion_window, service_tier,
    input_file_id, output_ttl_s, metadata, expires_at)
VALUES (%(id)s, %(tenant_id)s, %(api_key_id)s, %(endpoint)s, %(completion_window)s,
    %(service_tier)s, %(input_file_id)s, %(output_ttl_s)s, %(metadata)s,
    now() + make_interval(secs => %(window_s)s))
"""

_ROW = """
SELECT b.*, u.input_tokens, u.cached_tokens, u.output_tokens FROM batches b
LEFT JOIN LATERAL (
    SELECT sum(j.input_tokens)::bigint AS input_tokens, sum(j.cached_tokens)::bigint
        AS cached_tokens, sum(j.output_tokens)::bigint AS output_tokens
    FROM jobs j WHERE j.batch_id = b.id AND j.finished_at IS NOT NULL
) u ON true
WHERE b.tenant_id = %(tenant_id)s AND b.deleted_at IS NULL
"""

_CANCEL = """
UPDATE batches SET status = 'cancelling', cancelling_at = now()
WHERE id = %(id)s AND tenant_id = %(tenant_id)s AND status IN ('validating', 'in_progress')
"""

# One that is not over is cancelled; what its driver writes then goes once it has ended.
_DELETE = """
WITH batch AS (
    UPDATE batches SET deleted_at = now(),
        status = CASE WHEN status IN ('validating', 'in_progress') THEN 'cancelling'
            ELSE status END,
        cancelling_at = CASE WHEN status IN ('validating', 'in_progress') THEN now()
            ELSE cancelling_at END
    WHERE id = %(id)s AND tenant_id = %(tenant_id)s AND deleted_at IS NULL
    RETURNING id, output_file_id, error_file_id
), outputs AS (
    UPDATE files f SET deleted_at = now() FROM batch
    WHERE f.deleted_at IS NULL AND f.id IN (batch.output_file_id, batch.error_file_id)
)
SELECT id FROM batch
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewBatch:
    """What the API writes of a batch; a driver does the rest."""

    id: UUID
    tenant_id: UUID
    api_key_id: str
    endpoint: str
    completion_window: str
    window_s: int
    service_tier: str
    input_file_id: UUID
    output_ttl_s: int | None
    metadata: Mapping[str, str]


async def create_batch(pool: AsyncPool, new: NewBatch) -> None:
    """A batch that waits for its file to be read."""
    parameters = {name: getattr(new, name) for name in NewBatch.__slots__}
    parameters["metadata"] = Jsonb(dict(new.metadata))
    async with as_tenant(pool, new.tenant_id) as connection:
        await connection.execute(_CREATE, parameters)


async def get_batch(pool: AsyncPool, tenant_id: UUID, batch_id: UUID) -> BatchRow | None:
    """A tenant's batch with the tokens of its jobs so far."""
    parameters = {"tenant_id": tenant_id, "id": batch_id}
    async with as_tenant(pool, tenant_id) as connection:
        cursor = await connection.execute(f"{_ROW} AND b.id = %(id)s", parameters)
        return await cursor.fetchone()


async def list_batches(
    pool: AsyncPool, tenant_id: UUID, *, after: UUID | None, limit: int
) -> list[BatchRow]:
    """Newest first, those older than `after`."""
    parameters = {"tenant_id": tenant_id, "after": after, "limit": limit}
    older = "AND (%(after)s::uuid IS NULL OR b.id < %(after)s) ORDER BY b.id DESC LIMIT %(limit)s"
    async with as_tenant(pool, tenant_id) as connection:
        cursor = await connection.execute(f"{_ROW} {older}", parameters)
        return await cursor.fetchall()


async def cancel_batch(pool: AsyncPool, tenant_id: UUID, batch_id: UUID) -> None:
    """Ask for the end of a batch; one that is over stays so. Idempotent."""
    async with as_tenant(pool, tenant_id) as connection:
        await connection.execute(_CANCEL, {"tenant_id": tenant_id, "id": batch_id})


async def delete_batch(pool: AsyncPool, tenant_id: UUID, batch_id: UUID) -> bool:
    """Hide a batch and the files it wrote; maintenance removes them and its jobs once it is over.
    False if there is no such batch.
    """
    async with as_tenant(pool, tenant_id) as connection:
        cursor = await connection.execute(_DELETE, {"tenant_id": tenant_id, "id": batch_id})
        return await cursor.fetchone() is not None
