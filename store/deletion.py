"""Deletion of jobs. What was asked and answered goes; the bill (outcome, usage, ledger) stays.

Only a job that is over is deleted: nothing writes to it then, since every write is fenced by its
status and attempt. Its emptied row hides it from then on and follows some time later, when no
stream can be waiting for it any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
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
# Arrays and OFFSET 0, not joins: however many rows the planner expects, each is looked up.
_EMPTY = """
), ids AS MATERIALIZED (
    SELECT ARRAY(SELECT id FROM job) AS these
), emptied AS (
    UPDATE jobs SET deleted_at = now(), metadata = '{}', end_user = NULL, error_message = NULL,
        idempotency_key = NULL, request_hash = uuid_send(id)
    WHERE id = ANY((SELECT these FROM ids)::uuid[])
), payloads AS (
    DELETE FROM job_payloads WHERE job_id = ANY((SELECT these FROM ids)::uuid[])
), results AS (
    DELETE FROM job_results WHERE job_id = ANY((SELECT these FROM ids)::uuid[])
), attempts AS (
    UPDATE job_attempts SET checkpoint_text = '', checkpoint_token_ids = '',
        checkpoint_splits = NULL
    WHERE job_id = ANY((SELECT these FROM ids)::uuid[])
), keys AS (
    DELETE FROM idempotency_keys WHERE ctid = ANY(ARRAY(
        SELECT k.ctid FROM job, LATERAL (
            SELECT i.ctid FROM idempotency_keys i WHERE i.tenant_id = job.tenant_id
                AND i.key = job.idempotency_key AND i.job_id = job.id OFFSET 0) k
    ))
)
SELECT id FROM job
"""

_DELETE = f"{_ARE_DELETED} j.id = %(job_id)s AND j.tenant_id = %(tenant_id)s FOR UPDATE{_EMPTY}"

_DELETE_THESE = f"""{_ARE_DELETED} j.id = ANY(%(ids)s)
    FOR UPDATE SKIP LOCKED{_EMPTY}"""

_UNSTORED = """
SELECT j.id FROM jobs j
WHERE NOT j.is_stored AND j.deleted_at IS NULL AND j.finished_at IS NOT NULL
    AND j.finished_at < now() - make_interval(secs => %(keep_s)s)
    AND j.batch_id {of_batch} AND j.id <> ALL(%(aside)s::uuid[])
ORDER BY j.finished_at LIMIT %(batch)s
"""
_UNSTORED_ALONE = _UNSTORED.format(of_batch="IS NULL")
_UNSTORED_OF_BATCH = _UNSTORED.format(of_batch="= %(batch_id)s")

# From one batch with such jobs to the next by their index, however many jobs each has.
_BATCHES_WITH_UNSTORED = f"""
WITH RECURSIVE found AS (
    (SELECT j.batch_id AS id, 1 AS place FROM jobs j
    WHERE NOT j.is_stored AND j.deleted_at IS NULL AND j.finished_at IS NOT NULL
        AND j.batch_id > %(after)s
    ORDER BY j.batch_id LIMIT 1)
    UNION ALL
    SELECT next.batch_id, f.place + 1 FROM found f, LATERAL (
        SELECT j.batch_id FROM jobs j
        WHERE NOT j.is_stored AND j.deleted_at IS NULL AND j.finished_at IS NOT NULL
            AND j.batch_id > f.id
        ORDER BY j.batch_id LIMIT 1) next
    WHERE f.place < %(batch)s
)
SELECT f.id, NOT EXISTS (SELECT FROM batches b WHERE b.id = f.id AND {LIVE_BATCH}) AS is_over
FROM found f ORDER BY f.place
"""

_OF_BATCH = """
SELECT j.id FROM jobs j
WHERE j.batch_id = %(batch_id)s AND j.deleted_at IS NULL AND j.finished_at IS NOT NULL
    AND j.id <> ALL(%(aside)s::uuid[])
ORDER BY j.id LIMIT %(batch)s
"""

_REMOVABLE = """
SELECT id FROM jobs
WHERE deleted_at < now() - make_interval(secs => %(after_s)s) AND id <> ALL(%(aside)s::uuid[])
ORDER BY deleted_at LIMIT %(batch)s
"""

# Not `IS NOT NULL`: Postgres expects few deleted jobs, and would look for these among all of them.
_REMOVE = "DELETE FROM jobs WHERE id = ANY(%s) AND num_nonnulls(deleted_at) = 1"

_OF_LIVE_BATCH = f"""
SELECT 1 FROM jobs j JOIN batches b ON b.id = j.batch_id
WHERE j.id = %s AND j.tenant_id = %s AND {LIVE_BATCH}
"""

_DELETED_BATCHES = f"""
SELECT b.id FROM batches b
WHERE b.deleted_at IS NOT NULL AND NOT {LIVE_BATCH} AND b.id > %s ORDER BY b.id LIMIT %s
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


def unstored_jobs(
    connection: DictConnection,
    *,
    keep_s: float,
    batch: int,
    batch_id: UUID | None = None,
    aside: Sequence[UUID] = (),
) -> list[UUID]:
    """Jobs that were not to be stored and ended so long ago: of no batch, or of this one."""
    query = _UNSTORED_ALONE if batch_id is None else _UNSTORED_OF_BATCH
    parameters = {"keep_s": keep_s, "batch": batch, "batch_id": batch_id, "aside": list(aside)}
    return _ids(connection, query, parameters)


def batches_with_unstored(
    connection: DictConnection, *, after: UUID, batch: int
) -> list[tuple[UUID, bool]]:
    """Batches that have such jobs, by id, and whether each is over."""
    parameters = {"after": after, "batch": batch}
    rows = connection.execute(_BATCHES_WITH_UNSTORED, parameters).fetchall()
    return [(row["id"], row["is_over"]) for row in rows]


def jobs_of_batch(
    connection: DictConnection, batch_id: UUID, *, batch: int, aside: Sequence[UUID] = ()
) -> list[UUID]:
    """Jobs of a batch that are over and not deleted yet."""
    parameters = {"batch_id": batch_id, "batch": batch, "aside": list(aside)}
    return _ids(connection, _OF_BATCH, parameters)


def delete_jobs(connection: DictConnection, job_ids: Sequence[UUID]) -> int:
    """Delete those that are over and of no batch that goes on. Returns how many."""
    return len(connection.execute(_DELETE_THESE, {"ids": list(job_ids)}).fetchall())


def removable_jobs(
    connection: DictConnection, *, after_s: float, batch: int, aside: Sequence[UUID] = ()
) -> list[UUID]:
    """Jobs that were deleted so long ago and whose rows are still there."""
    parameters = {"after_s": after_s, "batch": batch, "aside": list(aside)}
    return _ids(connection, _REMOVABLE, parameters)


def remove_jobs(connection: DictConnection, job_ids: Sequence[UUID]) -> int:
    """The rows of deleted jobs, and whatever else there is of them but the bill. Idempotent.
    Returns how many jobs.
    """
    ids = (list(job_ids),)
    with connection.transaction():
        for table in ("job_payloads", "job_results", "job_attempts"):
            connection.execute(f"DELETE FROM {table} WHERE job_id = ANY(%s)", ids)
        return connection.execute(_REMOVE, ids).rowcount


def deleted_batches(connection: DictConnection, *, after: UUID, batch: int) -> list[UUID]:
    """Batches that were deleted and are over, by id."""
    rows = connection.execute(_DELETED_BATCHES, (after, batch)).fetchall()
    return [row["id"] for row in rows]


def remove_batch(connection: DictConnection, batch_id: UUID) -> None:
    """The row of a deleted batch, once all its jobs are deleted, and with it what it wrote."""
    connection.execute(_REMOVE_BATCH, {"batch_id": batch_id})


def _ids(connection: DictConnection, query: str, parameters: dict[str, Any]) -> list[UUID]:
    return [row["id"] for row in connection.execute(query.encode(), parameters).fetchall()]
