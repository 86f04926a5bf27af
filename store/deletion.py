"""Deletion of jobs. What was asked and answered goes; the bill (outcome, usage, ledger) stays.

Only a job that is over is deleted: nothing writes to it then, since every write is fenced by its
status and attempt. Its emptied row hides it from then on and follows some time later, when no
stream can be waiting for it any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from store.pools import AsyncPool, DictConnection, as_tenant

LIVE_BATCH = "b.status IN ('validating', 'in_progress', 'finalizing', 'cancelling')"

# A batch that goes on still needs the results of its jobs for its files.
NOT_OF_LIVE_BATCH = f"NOT EXISTS (SELECT FROM batches b WHERE b.id = j.batch_id AND {LIVE_BATCH})"

_ARE_DELETED = f"""
WITH job AS MATERIALIZED (
    SELECT j.id, j.tenant_id, j.idempotency_key FROM jobs j
    WHERE j.finished_at IS NOT NULL AND j.deleted_at IS NULL AND {NOT_OF_LIVE_BATCH} AND """

# The hash tells equal requests, so it goes too: no two rows may have the same one in its index.
_EMPTY = """
), emptied AS (
    UPDATE jobs j SET deleted_at = now(), metadata = '{}', end_user = NULL, error_message = NULL,
        idempotency_key = NULL, request_hash = uuid_send(j.id)
    FROM job WHERE j.id = job.id
), payloads AS (
    DELETE FROM job_payloads p USING job WHERE p.job_id = job.id
), results AS (
    DELETE FROM job_results r USING job WHERE r.job_id = job.id
), attempts AS (
    UPDATE job_attempts a SET checkpoint_text = '', checkpoint_token_ids = '',
        checkpoint_splits = NULL
    FROM job WHERE a.job_id = job.id
), keys AS (
    DELETE FROM idempotency_keys k USING job
    WHERE k.tenant_id = job.tenant_id AND k.key = job.idempotency_key AND k.job_id = job.id
)
SELECT id FROM job
"""

_DELETE = f"{_ARE_DELETED} j.id = %(job_id)s AND j.tenant_id = %(tenant_id)s FOR UPDATE{_EMPTY}"

_EXPIRE_UNSTORED = f"""{_ARE_DELETED} NOT j.is_stored
        AND j.finished_at < now() - make_interval(secs => %(keep_s)s)
    ORDER BY j.finished_at LIMIT %(batch)s FOR UPDATE SKIP LOCKED{_EMPTY}"""

_DELETE_OF_BATCH = f"""{_ARE_DELETED} j.batch_id = %(batch_id)s
    ORDER BY j.id LIMIT %(batch)s FOR UPDATE SKIP LOCKED{_EMPTY}"""

_REMOVABLE = """
SELECT id FROM jobs
WHERE deleted_at < now() - make_interval(secs => %(after_s)s) AND finished_at IS NOT NULL
ORDER BY finished_at LIMIT %(batch)s
"""

_OF_LIVE_BATCH = f"""
SELECT 1 FROM jobs j JOIN batches b ON b.id = j.batch_id
WHERE j.id = %s AND j.tenant_id = %s AND {LIVE_BATCH}
"""

_DELETED_BATCHES = f"""
SELECT b.id FROM batches b WHERE b.deleted_at IS NOT NULL AND NOT {LIVE_BATCH} LIMIT %s
"""

# A job that a driver made and died before it could say so may go on after its batch.
_REMOVE_BATCH = """
WITH batch AS (
    DELETE FROM batches b WHERE b.id = %(batch_id)s
        AND NOT EXISTS (SELECT FROM jobs j WHERE j.batch_id = b.id AND j.deleted_at IS NULL)
    RETURNING output_file_id, error_file_id
)
UPDATE files f SET deleted_at = now() FROM batch
WHERE f.deleted_at IS NULL AND f.id IN (batch.output_file_id, batch.error_file_id)
"""


async def delete_job(pool: AsyncPool, tenant_id: UUID, job_id: UUID) -> bool:
    """Delete what a job was asked and answered. False: there is no such job, it is not over, or it
    is of a batch that goes on.
    """
    async with as_tenant(pool, tenant_id) as connection:
        cursor = await connection.execute(_DELETE, {"job_id": job_id, "tenant_id": tenant_id})
        return await cursor.fetchone() is not None


async def is_of_live_batch(pool: AsyncPool, tenant_id: UUID, job_id: UUID) -> bool:
    """Whether a batch still needs the job."""
    async with as_tenant(pool, tenant_id) as connection:
        cursor = await connection.execute(_OF_LIVE_BATCH, (job_id, tenant_id))
        return await cursor.fetchone() is not None


def expire_unstored(connection: DictConnection, *, keep_s: float, batch: int) -> int:
    """Delete jobs that were not to be stored and ended so long ago. Returns how many."""
    parameters = {"keep_s": keep_s, "batch": batch}
    return len(connection.execute(_EXPIRE_UNSTORED, parameters).fetchall())


def delete_jobs_of_batch(connection: DictConnection, batch_id: UUID, *, batch: int) -> int:
    """Delete jobs of a batch that is over. Returns how many."""
    parameters = {"batch_id": batch_id, "batch": batch}
    return len(connection.execute(_DELETE_OF_BATCH, parameters).fetchall())


def removable_jobs(connection: DictConnection, *, after_s: float, batch: int) -> Sequence[UUID]:
    """Jobs that were deleted so long ago and whose rows are still there."""
    parameters = {"after_s": after_s, "batch": batch}
    return [row["id"] for row in connection.execute(_REMOVABLE, parameters).fetchall()]


def remove_jobs(connection: DictConnection, job_ids: Sequence[UUID]) -> None:
    """The rows of deleted jobs, and whatever else there is of them but the bill. Idempotent."""
    with connection.transaction():
        for table in ("job_payloads", "job_results", "job_attempts"):
            connection.execute(f"DELETE FROM {table} WHERE job_id = ANY(%s)", (list(job_ids),))
        connection.execute(
            "DELETE FROM jobs WHERE id = ANY(%s) AND deleted_at IS NOT NULL", (list(job_ids),)
        )


def deleted_batches(connection: DictConnection, *, batch: int) -> Sequence[UUID]:
    """Batches that were deleted and are over."""
    return [row["id"] for row in connection.execute(_DELETED_BATCHES, (batch,)).fetchall()]


def remove_batch(connection: DictConnection, batch_id: UUID) -> None:
    """The row of a deleted batch, once all its jobs are deleted, and with it what it wrote."""
    connection.execute(_REMOVE_BATCH, {"batch_id": batch_id})
