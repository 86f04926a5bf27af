"""Jobs as the API reads and cancels them. Every query names the tenant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from store.pools import AsyncPool, as_tenant
from store.settings import keep
from tasks.jobs import JobStatus

JobRow = dict[str, Any]

DAY_S = 86_400.0
LONGEST_S = 8 * DAY_S  # from submission to end: a batch's seven days, and a grace

_JOB = """
SELECT j.*, r.output, r.last_seq FROM jobs j LEFT JOIN job_results r ON r.job_id = j.id
"""

# What is over is shown for as long as its result is kept, whenever maintenance removes it.
_KEPT = "(j.finished_at IS NULL OR j.finished_at > now() - make_interval(secs => %(keep_s)s))"

_GET = f"{_JOB} WHERE j.id = %(job_id)s AND j.tenant_id = %(tenant_id)s AND {_KEPT}"

_GET_WITH_REQUEST = f"""
SELECT j.*, r.output, r.last_seq, p.request FROM jobs j
LEFT JOIN job_results r ON r.job_id = j.id LEFT JOIN job_payloads p ON p.job_id = j.id
WHERE j.id = %(job_id)s AND j.tenant_id = %(tenant_id)s AND {_KEPT}
"""

_LIST = f"""{_JOB}
WHERE j.tenant_id = %(tenant_id)s AND j.deleted_at IS NULL
    AND (%(after)s::uuid IS NULL OR j.id < %(after)s)
    AND {_KEPT} AND j.id > uuid7_floor(now() - make_interval(secs => %(keep_s)s + %(longest_s)s))
    AND (j.is_stored OR j.finished_at IS NULL)
    AND (%(status)s::text IS NULL OR j.status = %(status)s)
ORDER BY j.id DESC LIMIT %(limit)s
"""

# Jobs ahead in the same pool and tier, across tenants: the count alone leaves the tenant's view.
# It ends at MAX_POSITION, so that the backlog of one costs the others nothing.
MAX_POSITION = 1_000
_POSITION = "SELECT queue_position(%s) AS position"

# Only a job that no attempt has touched ends here: one that produced tokens before ends in the
# maintenance worker, which knows its last checkpoint.
_CANCEL = """
WITH job AS (
    UPDATE jobs SET
        cancel_requested_at = coalesce(cancel_requested_at, now()),
        cancel_by = coalesce(cancel_by, %(by)s),
        status = CASE WHEN status = 'queued' AND attempt = 0 THEN 'cancelled' ELSE status END,
        reason = CASE WHEN status = 'queued' AND attempt = 0
            THEN 'cancelled_by_' || coalesce(cancel_by, %(by)s) ELSE reason END,
        finished_at = CASE WHEN status = 'queued' AND attempt = 0 THEN now() END,
        cost_micros = CASE WHEN status = 'queued' AND attempt = 0 THEN 0 END,
        cached_tokens = CASE WHEN status = 'queued' AND attempt = 0 THEN 0 END,
        output_tokens = CASE WHEN status = 'queued' AND attempt = 0 THEN 0 END
    WHERE id = %(job_id)s AND tenant_id = %(tenant_id)s AND finished_at IS NULL
    RETURNING *
), outcome AS (
    INSERT INTO job_outcomes (job_id, tenant_id, api_key_id, model, service_tier, status, reason,
        payer, attempt, input_tokens, cached_tokens, output_tokens, price_version, input_price,
        cached_price, output_price, currency, end_user)
    SELECT id, tenant_id, api_key_id, model, service_tier, status, reason, 'nobody', attempt,
        input_tokens, 0, 0, price_version, input_price, cached_price, output_price, currency,
        end_user
    FROM job WHERE finished_at IS NOT NULL
)
SELECT worker_id, finished_at IS NOT NULL AS is_finished FROM job
"""


@dataclass(frozen=True, slots=True)
class CancelResult:
    """The job after the request, and the worker to tell, if one runs it."""

    row: JobRow
    worker_id: UUID | None


async def get_job(pool: AsyncPool, tenant_id: UUID, job_id: UUID) -> JobRow | None:
    """A tenant's job with its output, None if it has no such job. `deleted_at` is for the caller to
    judge: a stream goes on to its end.
    """
    async with as_tenant(pool, tenant_id) as connection:
        cursor = await connection.execute(_GET, _named(tenant_id, job_id))
        return await cursor.fetchone()


async def get_job_with_request(pool: AsyncPool, tenant_id: UUID, job_id: UUID) -> JobRow | None:
    """The same with `request`, the body it was asked for with; null once that is deleted."""
    async with as_tenant(pool, tenant_id) as connection:
        cursor = await connection.execute(_GET_WITH_REQUEST, _named(tenant_id, job_id))
        return await cursor.fetchone()


async def list_jobs(
    pool: AsyncPool,
    tenant_id: UUID,
    *,
    status: JobStatus | None = None,
    after: UUID | None = None,
    limit: int = 20,
) -> list[JobRow]:
    """A tenant's jobs, newest first, those older than `after`."""
    parameters: dict[str, Any] = {
        "tenant_id": tenant_id,
        "status": status,
        "after": after,
        "limit": limit,
        "keep_s": kept_s(),
        "longest_s": LONGEST_S,
    }
    async with as_tenant(pool, tenant_id) as connection:
        cursor = await connection.execute(_LIST, parameters)
        return await cursor.fetchall()


async def queue_position(pool: AsyncPool, tenant_id: UUID, job_id: UUID) -> int | None:
    """How many jobs of its pool and tier are ahead of a queued job, MAX_POSITION at most.

    None if it isn't queued.
    """
    async with as_tenant(pool, tenant_id) as connection:
        cursor = await connection.execute(_POSITION, (job_id,))
        row = await cursor.fetchone()
    return row["position"] if row else None


async def request_cancel(
    pool: AsyncPool, tenant_id: UUID, job_id: UUID, *, by: str = "user"
) -> CancelResult | None:
    """Cancel a job: at once if no attempt has begun, else its worker will. Idempotent."""
    parameters = {"job_id": job_id, "tenant_id": tenant_id, "by": by}
    async with as_tenant(pool, tenant_id) as connection:
        cursor = await connection.execute(_CANCEL, parameters)
        cancelled = await cursor.fetchone()
    row = await get_job(pool, tenant_id, job_id)
    if row is None:
        return None
    return CancelResult(row, cancelled["worker_id"] if cancelled else None)


async def finished_jobs(pool: AsyncPool, job_ids: Sequence[UUID]) -> set[UUID]:
    """Which of these jobs are over, in one query over all tenants."""
    async with pool.connection() as connection:
        cursor = await connection.execute(
            "SELECT finished_jobs(%s::uuid[]) AS id", (list(job_ids),)
        )
        return {row["id"] for row in await cursor.fetchall()}


async def get_event_log(pool: AsyncPool, tenant_id: UUID, job_id: UUID) -> bytes | None:
    """The stored native events of a finished job; None before its end and after 24 h."""
    async with as_tenant(pool, tenant_id) as connection:
        cursor = await connection.execute(
            "SELECT event_log FROM job_results WHERE job_id = %s AND tenant_id = %s",
            (job_id, tenant_id),
        )
        row = await cursor.fetchone()
    return row["event_log"] if row else None


def kept_s() -> float:
    """For how long after its end a job can be looked at."""
    return keep().results_d * DAY_S


def _named(tenant_id: UUID, job_id: UUID) -> dict[str, Any]:
    return {"job_id": job_id, "tenant_id": tenant_id, "keep_s": kept_s()}
