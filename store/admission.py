"""Admission: idempotency key, reservation, job and payload in one statement, so all or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from psycopg import Error
from psycopg.types.json import Jsonb

from store.jobs import CLOCKS
from store.pools import AsyncPool, as_tenant
from tasks.errors import IdempotencyKeyReused, InsufficientQuota
from tasks.ids import uuid7_floor
from tasks.jobs import Dialect, OnDisconnect
from tasks.queues import ServiceTier

IDEMPOTENCY_TTL_H = 24
RETRY_WINDOW_S = 900  # SDKs wait 600 s for an answer before they try again
INSUFFICIENT_QUOTA = "MR402"  # SQLSTATE raised by refuse_admission()
LINE_NOT_PENDING = "MR409"  # SQLSTATE raised by submit_batch_line()


class LineNotPending(Exception):
    """A line of a batch that has a job by now, or gets none any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenPrices:
    """Prices of one version, in micros per million tokens; stored with the job."""

    version: int
    input_micros: int
    cached_micros: int
    output_micros: int
    currency: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """Everything admission writes. `request_hash` is SHA-256 of the canonical request."""

    id: UUID
    tenant_id: UUID
    api_key_id: str
    model: str
    model_requested: str
    pool: str
    service_tier: ServiceTier
    lane: int
    deadline_s: float
    max_fails: int
    input_tokens: int
    max_output_tokens: int
    prices: FrozenPrices
    reserve_micros: int
    request_hash: bytes
    request: Mapping[str, Any]
    prompt_token_ids: bytes  # little-endian uint32
    sampling: Mapping[str, Any]
    grammar: str | None = None  # serialised, as every attempt compiles it
    end_user: str | None = None
    idempotency_key: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    num_choices: int = 1
    dialect: str = Dialect.JOB.value
    tool_format: str | None = None  # how the model writes calls, if it may call something
    is_background: bool = False
    on_disconnect: str = OnDisconnect.CONTINUE.value
    batch_id: UUID | None = None
    is_stored: bool = True

    @property
    def max_tokens(self) -> int:
        """Input and all output it may produce: what rate limits reserve."""
        return self.input_tokens + self.max_output_tokens * self.num_choices


@dataclass(frozen=True, slots=True)
class Admitted:
    """The job that stands for the request.

    `row` is the new job as store.jobs would read it; None for a repeated idempotency key.
    """

    job_id: UUID
    row: dict[str, Any] | None = None

    @property
    def is_new(self) -> bool:
        """Whether this request made the job."""
        return self.row is not None


# Locks are taken in the order idempotency key, account, job; no other transaction holds a job while
# it waits for an account, so there is no cycle.
_ADMIT = f"""
WITH key AS (
    INSERT INTO idempotency_keys AS k (tenant_id, key, request_hash, job_id)
    SELECT %(tenant_id)s, %(idempotency_key)s::text, %(request_hash)s, %(id)s
    WHERE %(idempotency_key)s::text IS NOT NULL
    ON CONFLICT (tenant_id, key) DO UPDATE
        SET request_hash = excluded.request_hash, job_id = excluded.job_id, created_at = now()
        WHERE k.created_at < now() - interval '{IDEMPOTENCY_TTL_H} hours'
    RETURNING 1
), fresh AS (
    SELECT WHERE %(idempotency_key)s::text IS NULL OR EXISTS (SELECT FROM key)
), account AS (
    UPDATE accounts SET held_micros = held_micros + %(reserve)s
    WHERE tenant_id = %(tenant_id)s AND EXISTS (SELECT FROM fresh)
        AND balance_micros + credit_limit_micros - held_micros >= %(reserve)s
    RETURNING 1
), job AS (
    INSERT INTO jobs (id, tenant_id, api_key_id, end_user, model, model_requested, pool,
        service_tier, lane, status, max_fails, deadline_at, hinted_at, hint_count, input_tokens,
        max_output_tokens, price_version, input_price, cached_price, output_price, currency,
        metadata, request_hash, idempotency_key, num_choices, dialect, tool_format, is_background,
        on_disconnect, batch_id, is_stored)
    SELECT %(id)s, %(tenant_id)s, %(api_key_id)s, %(end_user)s, %(model)s, %(model_requested)s,
        %(pool)s, %(service_tier)s, %(lane)s, 'queued', %(max_fails)s,
        now() + make_interval(secs => %(deadline_s)s), now(), 1, %(input_tokens)s,
        %(max_output_tokens)s, %(price_version)s, %(input_price)s, %(cached_price)s,
        %(output_price)s, %(currency)s, %(metadata)s, %(request_hash)s, %(idempotency_key)s,
        %(num_choices)s, %(dialect)s, %(tool_format)s, %(is_background)s, %(on_disconnect)s,
        %(batch_id)s, %(is_stored)s
    FROM account RETURNING *
), payload AS (
    INSERT INTO job_payloads (job_id, tenant_id, request, prompt_token_ids, sampling, grammar)
    SELECT %(id)s, %(tenant_id)s, %(request)s, %(prompt_token_ids)s, %(sampling)s, %(grammar)s
    FROM account
), reservation AS (
    INSERT INTO reservations (job_id, tenant_id, amount_micros)
    SELECT %(id)s, %(tenant_id)s, %(reserve)s FROM account
)
SELECT job.*, {CLOCKS.format(job="job")}, NULL AS output, NULL AS last_seq,
    EXISTS (SELECT FROM fresh) AS is_fresh, CASE
    WHEN EXISTS (SELECT FROM fresh) AND NOT EXISTS (SELECT FROM job) THEN refuse_admission()
END AS refused
FROM (VALUES (1)) AS one LEFT JOIN job ON true
"""

_FIRST_TRY = """
SELECT id FROM jobs WHERE request_hash = %s AND tenant_id = %s AND api_key_id = %s AND id > %s
    AND status <> 'failed' AND deleted_at IS NULL
ORDER BY id DESC LIMIT 1
"""

_FIRST_USE = f"""
SELECT job_id, request_hash FROM idempotency_keys
WHERE tenant_id = %s AND key = %s AND created_at >= now() - interval '{IDEMPOTENCY_TTL_H} hours'
"""


async def admit(pool: AsyncPool, job: NewJob) -> Admitted:
    """Write the job and everything it needs, or nothing. One round trip.

    A repeated idempotency key gives the first job. Raises InsufficientQuota,
    IdempotencyKeyReused (same key, other request), InvalidRequest (text that Postgres can't store),
    LineNotPending (of a batch) and psycopg errors.
    """
    try:
        async with as_tenant(pool, job.tenant_id, plans_once=True) as connection:
            cursor = await connection.execute(_ADMIT, _parameters(job))
            row = await cursor.fetchone()
    except Error as error:
        if error.sqlstate == INSUFFICIENT_QUOTA:
            raise InsufficientQuota from None
        if error.sqlstate == LINE_NOT_PENDING:
            raise LineNotPending from None
        raise
    assert row is not None
    if row["is_fresh"]:
        return Admitted(job.id, row)
    # None: the key expired between the two statements.
    return await find_first_use(pool, job) or await admit(pool, job)


async def find_first_try(pool: AsyncPool, job: NewJob) -> UUID | None:
    """The job that the same key asked for by the same request a short while ago, unless it failed:
    a failure is what the retry is for.
    """
    oldest = uuid7_floor((job.id.int >> 80) - RETRY_WINDOW_S * 1_000)
    async with as_tenant(pool, job.tenant_id) as connection:
        cursor = await connection.execute(
            _FIRST_TRY, (job.request_hash, job.tenant_id, job.api_key_id, oldest)
        )
        row = await cursor.fetchone()
    return row["id"] if row else None


async def find_first_use(pool: AsyncPool, job: NewJob) -> Admitted | None:
    """The job that the same idempotency key made, if it was used. Raises IdempotencyKeyReused."""
    async with as_tenant(pool, job.tenant_id) as connection:
        cursor = await connection.execute(_FIRST_USE, (job.tenant_id, job.idempotency_key))
        row = await cursor.fetchone()
    if row is None:
        return None
    if row["request_hash"] != job.request_hash:
        raise IdempotencyKeyReused(param="Idempotency-Key")
    return Admitted(row["job_id"])


def _parameters(job: NewJob) -> dict[str, Any]:
    return {
        "id": job.id,
        "tenant_id": job.tenant_id,
        "api_key_id": job.api_key_id,
        "end_user": job.end_user,
        "model": job.model,
        "model_requested": job.model_requested,
        "pool": job.pool,
        "service_tier": job.service_tier.value,
        "lane": job.lane,
        "max_fails": job.max_fails,
        "deadline_s": job.deadline_s,
        "input_tokens": job.input_tokens,
        "max_output_tokens": job.max_output_tokens,
        "price_version": job.prices.version,
        "input_price": job.prices.input_micros,
        "cached_price": job.prices.cached_micros,
        "output_price": job.prices.output_micros,
        "currency": job.prices.currency,
        "reserve": job.reserve_micros,
        "metadata": Jsonb(dict(job.metadata)),
        "request_hash": job.request_hash,
        "idempotency_key": job.idempotency_key,
        "request": Jsonb(dict(job.request)),
        "prompt_token_ids": job.prompt_token_ids,
        "sampling": Jsonb(dict(job.sampling)),
        "grammar": job.grammar,
        "num_choices": job.num_choices,
        "dialect": job.dialect,
        "tool_format": job.tool_format,
        "is_background": job.is_background,
        "on_disconnect": job.on_disconnect,
        "batch_id": job.batch_id,
        "is_stored": job.is_stored,
    }
