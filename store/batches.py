"""Batches as the API reads, makes and cancels them. Every query names the tenant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from store.batch_turns import LIVE, BatchRow
from store.pools import AsyncPool, as_tenant
from tasks.errors import BatchQuotaExceeded
from tasks.ids import GREATEST_ID

# Batches of one tenant are made one after the other: each must see what the others take.
_LOCK = "SELECT pg_advisory_xact_lock(1650553960, hashtext(%(tenant_id)s::text))"  # "batch"

_CREATE = f"""
WITH live AS (
    SELECT count(*) AS num, coalesce(sum(input_bytes), 0)::bigint AS num_bytes
    FROM batches WHERE tenant_id = %(tenant_id)s AND {LIVE}
), kept AS (
    SELECT count(*) AS num
    FROM (SELECT FROM batches WHERE tenant_id = %(tenant_id)s
        ORDER BY id LIMIT %(max_kept)s) b  -- in its index's order: a scan would meet all tenants'
), quota AS (
    SELECT coalesce(max_batches, %(max_batches)s) AS num,
        coalesce(max_batch_bytes, %(max_bytes)s) AS num_bytes
    FROM tenants WHERE id = %(tenant_id)s
), made AS (
    INSERT INTO batches (id, tenant_id, api_key_id, endpoint, completion_window, service_tier,
        input_file_id, input_bytes, output_ttl_s, metadata, expires_at)
    SELECT %(id)s, %(tenant_id)s, %(api_key_id)s, %(endpoint)s, %(completion_window)s,
        %(service_tier)s, %(input_file_id)s, %(input_bytes)s, %(output_ttl_s)s, %(metadata)s,
        now() + make_interval(secs => %(window_s)s)
    FROM live, kept, quota
    WHERE kept.num < %(max_kept)s AND live.num < quota.num
        AND live.num_bytes + %(input_bytes)s <= quota.num_bytes
    RETURNING id
)
SELECT EXISTS (SELECT FROM made) AS is_made, kept.num AS num_kept,
    live.num AS num_live, live.num_bytes AS live_bytes,
    quota.num AS max_batches, quota.num_bytes AS max_bytes
FROM live, kept, quota
"""

_ROW = "SELECT * FROM batches b WHERE b.tenant_id = %(tenant_id)s AND b.deleted_at IS NULL"

_CANCEL = """
UPDATE batches SET status = 'cancelling', cancelling_at = now(), next_step_at = now()
WHERE id = %(id)s AND tenant_id = %(tenant_id)s AND status IN ('validating', 'in_progress')
"""

# One that is not over is cancelled; what its driver writes then goes once it has ended.
_DELETE = """
WITH batch AS (
    UPDATE batches SET deleted_at = now(), next_step_at = now(),
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


@dataclass(frozen=True, slots=True)
class BatchQuota:
    """What a tenant may have of batches."""

    max_batches: int  # that are not over
    max_bytes: int  # of their input files
    max_kept: int = 20_000  # those that are over included


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
    input_bytes: int
    output_ttl_s: int | None
    metadata: Mapping[str, str]


async def create_batch(pool: AsyncPool, new: NewBatch, quota: BatchQuota) -> None:
    """A batch that waits for its file to be read. `quota` is for tenants without one of their own.

    Raises BatchQuotaExceeded.
    """
    parameters = {name: getattr(new, name) for name in NewBatch.__slots__}
    parameters["metadata"] = Jsonb(dict(new.metadata))
    parameters |= {
        "max_batches": quota.max_batches,
        "max_bytes": quota.max_bytes,
        "max_kept": quota.max_kept,
    }
    async with as_tenant(pool, new.tenant_id) as connection:
        await connection.execute(_LOCK, parameters)
        cursor = await connection.execute(_CREATE, parameters)
        row = await cursor.fetchone()
    assert row is not None
    if not row["is_made"]:
        raise BatchQuotaExceeded(_refusal(row, quota, new.input_bytes), param="input_file_id")


def _refusal(row: dict[str, Any], quota: BatchQuota, num_bytes: int) -> str:
    if row["num_kept"] >= quota.max_kept:
        return (
            f"You have {quota.max_kept} batches, those that are over included, and may have no"
            " more. Delete some."
        )
    if row["num_live"] >= row["max_batches"]:
        most = row["max_batches"]
        has = f"You have {row['num_live']} batches that are not over, and may have {most}."
    else:
        has = (
            f"Your batches that are not over take {row['live_bytes']} bytes of the"
            f" {row['max_bytes']} they may take, and this one has {num_bytes}."
        )
    return f"{has} Wait for one to end, or cancel one."


async def get_batch(pool: AsyncPool, tenant_id: UUID, batch_id: UUID) -> BatchRow | None:
    """A tenant's batch as it is now."""
    parameters = {"tenant_id": tenant_id, "id": batch_id}
    async with as_tenant(pool, tenant_id) as connection:
        cursor = await connection.execute(f"{_ROW} AND b.id = %(id)s", parameters)
        return await cursor.fetchone()


async def list_batches(
    pool: AsyncPool, tenant_id: UUID, *, after: UUID | None, limit: int
) -> list[BatchRow]:
    """Newest first, those older than `after`."""
    parameters = {"tenant_id": tenant_id, "before": after or GREATEST_ID, "limit": limit}
    older = "AND b.id < %(before)s ORDER BY b.id DESC LIMIT %(limit)s"
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
