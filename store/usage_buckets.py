"""Usage and costs by time and group, for `GET /v1/organization/...`. Reads `usage` and prices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from psycopg import sql

from store.pools import AsyncPool, as_tenant

_EPOCH = "timestamptz 'epoch'"

# What may be grouped by, as it stands in the answer.
_GROUPS = {
    "user_id": "end_user",
    "api_key_id": "api_key_id",
    "model": "model",
    "batch": "service_tier = 'batch'",
    "service_tier": "service_tier",
}
_FILTERS = {"models": "model", "api_key_ids": "api_key_id", "user_ids": "end_user"}

_USAGE = """
    SELECT date_bin(%(width)s, created_at, {epoch}) AS bucket{columns},
        count(*) AS num_model_requests, sum(input_tokens)::bigint AS input_tokens,
        sum(cached_tokens)::bigint AS input_cached_tokens,
        sum(output_tokens)::bigint AS output_tokens
    FROM usage WHERE tenant_id = %(tenant_id)s AND created_at >= %(start)s
        AND created_at < %(end)s{filters}
    GROUP BY bucket{groups} ORDER BY bucket{groups}
"""

# A job's charge is rounded up once. Of its parts input and cached input are rounded down and output
# has the rest, so that the parts add up to what the ledger holds, to the micro.
_COSTS = """
    WITH parts AS (
        SELECT u.created_at, u.model, u.api_key_id, u.currency, u.amount_micros,
            u.input_tokens - u.cached_tokens AS input_tokens, u.cached_tokens, u.output_tokens,
            least(u.amount_micros,
                div((u.input_tokens - u.cached_tokens)::numeric * p.input_micros, 1000000)
            )::bigint AS input_amount,
            div(u.cached_tokens::numeric * p.cached_micros, 1000000)::bigint AS cached_amount
        FROM usage u JOIN prices p ON p.version = u.price_version AND p.model_name = u.model
            AND p.service_tier = u.service_tier
        WHERE u.tenant_id = %(tenant_id)s AND u.created_at >= %(start)s
            AND u.created_at < %(end)s AND u.amount_micros > 0{filters}
    ), items AS (
        SELECT created_at, api_key_id, currency, item.kind, model || ', ' || item.kind AS line_item,
            item.amount, item.quantity
        FROM parts, LATERAL (VALUES
            ('input', input_amount, input_tokens),
            ('cached input', least(cached_amount, amount_micros - input_amount), cached_tokens),
            ('output', amount_micros - input_amount
                - least(cached_amount, amount_micros - input_amount), output_tokens)
        ) AS item (kind, amount, quantity)
    )
    SELECT date_bin(%(width)s, created_at, {epoch}) AS bucket, currency{columns},
        sum(amount)::bigint AS amount_micros, sum(quantity)::bigint AS quantity
    FROM items GROUP BY bucket, currency{groups} ORDER BY bucket, currency{groups}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketQuery:
    """Settled jobs that ended in [start, end), by periods of `width` that begin at the epoch."""

    start: datetime
    end: datetime
    width: timedelta
    group_by: Sequence[str] = ()
    filters: Mapping[str, Sequence[str]] | None = None
    is_batch: bool | None = None


async def usage_buckets(
    pool: AsyncPool, tenant_id: UUID, query: BucketQuery
) -> list[dict[str, Any]]:
    """Rows `{bucket, <groups>, num_model_requests, input_tokens, ...}`; empty periods have none."""
    columns = {name: _GROUPS[name] for name in query.group_by if name in _GROUPS}
    return await _run(pool, tenant_id, query, _USAGE, columns)


async def cost_buckets(
    pool: AsyncPool, tenant_id: UUID, query: BucketQuery
) -> list[dict[str, Any]]:
    """Rows `{bucket, currency, <groups>, amount_micros, quantity}`."""
    names = ("line_item", "api_key_id")
    return await _run(
        pool, tenant_id, query, _COSTS, {name: name for name in names if name in query.group_by}
    )


async def _run(
    pool: AsyncPool,
    tenant_id: UUID,
    query: BucketQuery,
    statement: str,
    columns: Mapping[str, str],
) -> list[dict[str, Any]]:
    filters = {
        _FILTERS[name]: list(values)
        for name, values in (query.filters or {}).items()
        if values and name in _FILTERS
    }
    text = statement.format(
        epoch=_EPOCH,
        columns="".join(f", {column} AS {name}" for name, column in columns.items()),
        groups="".join(f", {number}" for number in _positions(statement, columns)),
        filters="".join(f" AND {column} = ANY(%(f_{column})s)" for column in filters)
        + _batch_filter(query.is_batch),
    )
    parameters = {
        "tenant_id": tenant_id,
        "start": query.start,
        "end": query.end,
        "width": query.width,
        **{f"f_{column}": values for column, values in filters.items()},
    }
    async with as_tenant(pool, tenant_id) as connection:
        cursor = await connection.execute(sql.SQL(text), parameters)
        return await cursor.fetchall()


def _positions(statement: str, columns: Mapping[str, str]) -> range:
    """Of the group columns in the select list: behind the bucket, and of costs the currency."""
    first = 3 if statement is _COSTS else 2
    return range(first, first + len(columns))


def _batch_filter(is_batch: bool | None) -> str:
    if is_batch is None:
        return ""
    return " AND service_tier = 'batch'" if is_batch else " AND service_tier <> 'batch'"
