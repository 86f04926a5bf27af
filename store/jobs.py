"""Jobs as the API reads and cancels them. Every query names the tenant."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from store.logprobs import LOGPROBS, LOGPROBS_A_QUERY, LOGPROBS_A_ROW, logprobs_query
from store.pools import AsyncPool, as_tenant
from store.settings import keep
from tasks.errors import JobNotFound
from tasks.ids import GREATEST_ID
from tasks.jobs import JobStatus

JobRow = dict[str, Any]

DAY_S = 86_400.0
LONGEST_S = 8 * DAY_S  # from submission to end: a batch's seven days, and a grace

# Log-probabilities can be tens of MB: they are left out, and read bit by bit where they are shown.
# Where a choice has some, of its own tokens or of its prompt's, it says `true`.
OUTPUT = """
(CASE WHEN r.output IS NOT NULL THEN coalesce((
    SELECT jsonb_agg(c || CASE jsonb_typeof(c->'logprobs')
        WHEN 'object' THEN '{"logprobs": true}'::jsonb ELSE '{}' END
        || CASE jsonb_typeof(c->'prompt_logprobs')
        WHEN 'object' THEN '{"prompt_logprobs": true}'::jsonb ELSE '{}' END ORDER BY n)
    FROM jsonb_array_elements(r.output) WITH ORDINALITY AS choices (c, n)
), '[]') END)"""
_OUTPUT = f"{OUTPUT} AS output"

# How old a job is, and how long it may still take, when it is read: the clocks of other machines
# are not compared with the times that Postgres wrote.
CLOCKS = """
extract(epoch FROM now() - {job}.created_at)::float AS age_s,
extract(epoch FROM {job}.deadline_at - now())::float AS remaining_s
"""
_CLOCKS = CLOCKS.format(job="j")

_JOB = f"""
SELECT j.*, {_CLOCKS}, {_OUTPUT}, r.last_seq FROM jobs j LEFT JOIN job_results r ON r.job_id = j.id
"""

# What is over is shown for as long as its result is kept, whenever maintenance removes it.
_KEPT = "(j.finished_at IS NULL OR j.finished_at > now() - make_interval(secs => %(keep_s)s))"

_GET = f"{_JOB} WHERE j.id = %(job_id)s AND j.tenant_id = %(tenant_id)s AND {_KEPT}"

_GET_WITH_REQUEST = f"""
SELECT j.*, {_CLOCKS}, {_OUTPUT}, r.last_seq, p.request FROM jobs j
LEFT JOIN job_results r ON r.job_id = j.id LEFT JOIN job_payloads p ON p.job_id = j.id
WHERE j.id = %(job_id)s AND j.tenant_id = %(tenant_id)s AND {_KEPT}
"""

# A page ends early, after its first job, where all it says would be too much at once. Tokens stand
# for bytes: they are known without reading the outputs.
MAX_PAGE_TOKENS = 50_000


def _page(condition: str) -> str:
    """Each condition has an index of its own: jobs of a rare status aren't searched for among all.
    The bounds of `id` leave months out; an expression of parameters other than a function's is no
    bound to Postgres behind a row policy.
    """
    return f"""
WITH page AS (
    SELECT *, count(*) OVER () AS num_found,
        sum(coalesce(output_tokens, 0)) OVER (ORDER BY id DESC) - coalesce(output_tokens, 0)
            AS tokens_before
    FROM (
        SELECT * FROM jobs
        WHERE tenant_id = %(tenant_id)s {condition}
            AND deleted_at IS NULL AND (is_stored OR finished_at IS NULL)
            AND id < %(before)s
            AND id > uuid7_floor(now() - make_interval(secs => %(keep_s)s + %(longest_s)s))
            AND {_KEPT.replace("j.", "jobs.")}
        ORDER BY id DESC LIMIT %(limit)s + 1
    ) newest
)
SELECT j.*, (
    SELECT jsonb_agg(c - 'logprobs' - 'prompt_logprobs' ORDER BY n)
    FROM jsonb_array_elements(r.output) WITH ORDINALITY AS choices (c, n)
) AS output
FROM page j LEFT JOIN job_results r ON r.job_id = j.id
WHERE tokens_before < {MAX_PAGE_TOKENS} ORDER BY j.id DESC LIMIT %(limit)s
"""


# A tenant's jobs are read in the order of an index, up to the limit. Postgres expects few, of each
# month, and would rather read and sort all. And one plan for all statuses takes each of them for as
# frequent as the others: it would look for a failed one among all jobs.
_IN_ORDER = """
SELECT set_config('enable_sort', 'off', true),
    set_config('plan_cache_mode', 'force_custom_plan', true)
"""
_LIST = _page("")
_LIST_OF_STATUS = _page("AND status = %(status)s")

_LOG_PART = """
SELECT substring(event_log FROM %(offset)s + 1 FOR %(num_bytes)s) AS part FROM job_results
WHERE job_id = %(job_id)s AND tenant_id = %(tenant_id)s
"""

_IS_KEPT = """
SELECT FROM job_results WHERE job_id = %(job_id)s AND tenant_id = %(tenant_id)s
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
SELECT worker_id FROM job
"""


@dataclass(frozen=True, slots=True)
class CancelResult:
    """The job after the request, and the worker to tell, if one runs it."""

    row: JobRow
    worker_id: UUID | None


@dataclass(frozen=True, slots=True)
class JobPage:
    """Some of a tenant's jobs, and whether there are more behind them."""

    rows: list[JobRow]
    has_more: bool


async def get_job(pool: AsyncPool, tenant_id: UUID, job_id: UUID) -> JobRow | None:
    """A tenant's job with its output, None if it has no such job. `deleted_at` is for the caller to
    judge: a stream goes on to its end.
    """
    async with as_tenant(pool, tenant_id, plans_once=True) as connection:
        cursor = await connection.execute(_GET, _named(tenant_id, job_id))
        return await cursor.fetchone()


async def get_job_with_request(pool: AsyncPool, tenant_id: UUID, job_id: UUID) -> JobRow | None:
    """The same with `request`, the body it was asked for with; null once that is deleted."""
    async with as_tenant(pool, tenant_id, plans_once=True) as connection:
        cursor = await connection.execute(_GET_WITH_REQUEST, _named(tenant_id, job_id))
        return await cursor.fetchone()


async def list_jobs(
    pool: AsyncPool,
    tenant_id: UUID,
    *,
    status: JobStatus | None = None,
    after: UUID | None = None,
    limit: int = 20,
) -> JobPage:
    """A tenant's jobs, newest first, those older than `after`, without log-probabilities."""
    parameters: dict[str, Any] = {
        "tenant_id": tenant_id,
        "status": status,
        "before": after or GREATEST_ID,
        "limit": limit,
        "keep_s": kept_s(),
        "longest_s": LONGEST_S,
    }
    async with as_tenant(pool, tenant_id) as connection:
        await connection.execute(_IN_ORDER)
        cursor = await connection.execute(_LIST_OF_STATUS if status else _LIST, parameters)
        rows = await cursor.fetchall()
    return JobPage(rows, has_more=bool(rows) and rows[0]["num_found"] > len(rows))


async def queue_position(pool: AsyncPool, tenant_id: UUID, job_id: UUID) -> int | None:
    """How many jobs of its pool and tier are ahead of a queued job, MAX_POSITION at most.

    None if it isn't queued.
    """
    async with as_tenant(pool, tenant_id, plans_once=True) as connection:
        cursor = await connection.execute(_POSITION, (job_id,))
        [row] = await cursor.fetchall()
    position: int | None = row["position"]
    return position


async def request_cancel(
    pool: AsyncPool, tenant_id: UUID, job_id: UUID, *, by: str = "user"
) -> CancelResult | None:
    """Cancel a job: at once if no attempt has begun, else its worker will. Idempotent."""
    parameters = {"job_id": job_id, "tenant_id": tenant_id, "by": by}
    async with as_tenant(pool, tenant_id, plans_once=True) as connection:
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


async def has_event_log(pool: AsyncPool, tenant_id: UUID, job_id: UUID) -> bool:
    """Whether the native events of a finished job are stored: until 24 h after its end."""
    return await read_event_log(pool, tenant_id, job_id, 0, 0) is not None


async def read_event_log(
    pool: AsyncPool, tenant_id: UUID, job_id: UUID, offset: int, num_bytes: int
) -> bytes | None:
    """A part of the stored log, compressed as it is; empty behind its end, None if there is none.

    Postgres keeps it in pieces as it came, so that a part costs no more than its own bytes.
    """
    parameters: dict[str, Any] = {"job_id": job_id, "tenant_id": tenant_id}
    parameters |= {"offset": offset, "num_bytes": num_bytes}
    async with as_tenant(pool, tenant_id) as connection:
        cursor = await connection.execute(_LOG_PART, parameters)
        row = await cursor.fetchone()
    return row["part"] if row else None


async def read_logprobs(
    pool: AsyncPool, tenant_id: UUID, job_id: UUID, choice: int, *, of_prompt: bool = False
) -> AsyncGenerator[tuple[str, str]]:
    """Token ids and log-probabilities of a finished choice, or of its prompt, in the order of the
    tokens: a few hundred at a time, each as the JSON of a list. No connection is held in between.
    Raises JobNotFound if the job is deleted meanwhile.
    """
    parameters = logprobs_query(tenant_id, job_id, choice, of_prompt=of_prompt)
    for begin in itertools.count(0, LOGPROBS_A_QUERY):
        async with as_tenant(pool, tenant_id) as connection:
            cursor = await connection.execute(LOGPROBS, parameters | {"begin": begin})
            kept = await connection.execute(_IS_KEPT, parameters)
            rows, is_kept = await cursor.fetchall(), await kept.fetchone() is not None
        if not is_kept:
            raise JobNotFound
        for row in rows:
            yield row["token_ids"], row["values"]
        if len(rows) * LOGPROBS_A_ROW < LOGPROBS_A_QUERY:
            return


def kept_s() -> float:
    """For how long after its end a job can be looked at."""
    return keep().results_d * DAY_S


def _named(tenant_id: UUID, job_id: UUID) -> dict[str, Any]:
    return {"job_id": job_id, "tenant_id": tenant_id, "keep_s": kept_s()}
