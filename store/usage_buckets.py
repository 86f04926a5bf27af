"""Usage and costs by time and group, for `GET /v1/organization/...`. Reads `usage` and prices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from psycopg import sql

from store.pools import AsyncPool, as_tenant
from tasks.errors import InvalidRequest

# More would fill the API's memory; a narrower question has fewer.
MAX_ROWS = 10_000

# What may be grouped and filtered by, as it stands in `usage`.
_COLUMNS = {
    "user_id": "u.end_user",
    "api_key_id": "u.api_key_id",
    "model": "u.model",
    "batch": "u.service_tier = 'batch'",
    "service_tier": "u.service_tier",
}

_PERIOD = "date_bin(%(width)s, u.created_at, timestamptz 'epoch') AS bucket"

_USAGE = """
    SELECT {period}{columns}, count(*) AS num_model_requests,
        sum(u.input_tokens)::bigint AS input_tokens,
        sum(u.cached_tokens)::bigint AS input_cached_tokens,
        sum(u.output_tokens)::bigint AS output_tokens
    FROM usage u WHERE {conditions}
    GROUP BY {groups} ORDER BY {groups} LIMIT %(limit)s
"""

_COSTS = """
    SELECT {period}, u.currency{columns}, sum(u.amount_micros)::bigint AS amount_micros
    FROM usage u WHERE {conditions} AND u.amount_micros > 0
    GROUP BY {groups} ORDER BY {groups} LIMIT %(limit)s
"""

# A job's charge is rounded up once, so its parts are differences of rounded sums: input is what the
# input alone would cost, cached input what it adds to that, output the rest of the charge. They add
# up to the ledger's entry to the micro, each is within a micro of its exact cost, and what has no
# tokens costs nothing. A charge that its reservation cut short pays for them in this order.
_LINE_ITEMS = """
    WITH split AS (
        SELECT {period}, u.currency, u.model{columns}, sum(u.amount_micros) AS charged,
            sum(least(u.amount_micros, coalesce(cost_micros(u.input_tokens - u.cached_tokens, 0, 0,
                p.input_micros, p.cached_micros, p.output_micros), 0))) AS input,
            sum(least(u.amount_micros, coalesce(cost_micros(u.input_tokens, u.cached_tokens, 0,
                p.input_micros, p.cached_micros, p.output_micros), 0))) AS all_input,
            sum(u.input_tokens - u.cached_tokens) AS input_tokens,
            sum(u.cached_tokens) AS cached_tokens, sum(u.output_tokens) AS output_tokens
        FROM usage u LEFT JOIN prices p ON p.version = u.price_version
            AND p.model_name = u.model AND p.service_tier = u.service_tier
        WHERE {conditions} AND u.amount_micros > 0 GROUP BY {split_groups}
    ), items AS (
        SELECT split.*, model || ', ' || kind AS line_item, amount, quantity
        FROM split, LATERAL (VALUES
            ('input', input, input_tokens), ('cached input', all_input - input, cached_tokens),
            ('output', charged - all_input, output_tokens)) AS item (kind, amount, quantity)
        WHERE amount > 0 OR quantity > 0
    )
    SELECT bucket, currency{names}, sum(amount)::bigint AS amount_micros,
        sum(quantity)::bigint AS quantity
    FROM items
    WHERE %(line_items)s::text[] IS NULL OR line_item = ANY(%(line_items)s)
    GROUP BY {groups} ORDER BY {groups} LIMIT %(limit)s
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketQuery:
    """Settled jobs that ended in [start, end), by periods of `width` that begin at the epoch.

    `filters` names a column as `group_by` does, and the values to keep.
    """

    start: datetime
    end: datetime
    width: timedelta
    group_by: Sequence[str] = ()
    filters: Mapping[str, Sequence[str]] = field(default_factory=dict)
    is_batch: bool | None = None
    line_items: Sequence[str] | None = None


async def usage_buckets(
    pool: AsyncPool, tenant_id: UUID, query: BucketQuery
) -> list[dict[str, Any]]:
    """Rows `{bucket, <groups>, num_model_requests, input_tokens, ...}`; empty periods have none.

    Raises InvalidRequest if they are too many.
    """
    groups = ["bucket", *_grouped(query)]
    return await _run(pool, tenant_id, query, _USAGE, groups=_positions(groups))


async def cost_buckets(
    pool: AsyncPool, tenant_id: UUID, query: BucketQuery
) -> list[dict[str, Any]]:
    """Rows `{bucket, currency, <groups>, amount_micros}`, with `quantity` by line item.

    Raises InvalidRequest if they are too many.
    """
    groups = ["bucket", "currency", *_grouped(query)]
    if "line_item" not in query.group_by and query.line_items is None:
        return await _run(pool, tenant_id, query, _COSTS, groups=_positions(groups))
    names = [*_grouped(query), *(["line_item"] if "line_item" in query.group_by else [])]
    return await _run(
        pool,
        tenant_id,
        query,
        _LINE_ITEMS,
        split_groups=_positions([*groups, "model"]),
        names="".join(f", {name}" for name in names),
        groups=_positions(["bucket", "currency", *names]),
    )


async def _run(
    pool: AsyncPool, tenant_id: UUID, query: BucketQuery, statement: str, **parts: str
) -> list[dict[str, Any]]:
    columns = "".join(f", {_COLUMNS[name]} AS {name}" for name in _grouped(query))
    text = statement.format(period=_PERIOD, columns=columns, conditions=_conditions(query), **parts)
    parameters = {
        "tenant_id": tenant_id,
        "start": query.start,
        "end": query.end,
        "width": query.width,
        "line_items": None if query.line_items is None else list(query.line_items),
        "limit": MAX_ROWS + 1,
        **{name: list(values) for name, values in query.filters.items()},
    }
    async with as_tenant(pool, tenant_id) as connection:
        cursor = await connection.execute(sql.SQL(text), parameters)
        rows = await cursor.fetchall()
    if len(rows) > MAX_ROWS:
        message = f"The answer has more than {MAX_ROWS} results: ask for fewer buckets or groups."
        raise InvalidRequest(message, param="limit")
    return rows


def _grouped(query: BucketQuery) -> list[str]:
    """Columns of `usage` to group by, each once, in one order."""
    return [name for name in _COLUMNS if name in query.group_by]


def _positions(groups: Sequence[str]) -> str:
    """They are the first of the select list."""
    return ", ".join(str(number + 1) for number in range(len(groups)))


def _conditions(query: BucketQuery) -> str:
    conditions = [
        "u.tenant_id = %(tenant_id)s AND u.created_at >= %(start)s AND u.created_at < %(end)s"
    ]
    conditions += [f"{_COLUMNS[name]} = ANY(%({name})s)" for name in query.filters]
    if query.is_batch is not None:
        conditions.append(
            "u.service_tier = 'batch'" if query.is_batch else "u.service_tier <> 'batch'"
        )
    return " AND ".join(conditions)
