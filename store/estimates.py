"""How long a model's answers were, for estimates of what a request will cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, LiteralString
from uuid import UUID

from store.pools import AsyncPool, as_tenant

MIN_SAMPLES = 20  # of the tenant's own; with fewer all tenants' are taken

# The latest 1,000 jobs with the model, among the latest 20,000: a rare model costs no more.
_OF_TENANT: LiteralString = """
    SELECT count(*) AS samples,
        percentile_disc(0.5) WITHIN GROUP (ORDER BY output_tokens)::float8 AS p50,
        percentile_disc(0.9) WITHIN GROUP (ORDER BY output_tokens)::float8 AS p90,
        percentile_disc(0.99) WITHIN GROUP (ORDER BY output_tokens)::float8 AS p99
    FROM (
        SELECT output_tokens FROM (
            SELECT created_at, model, output_tokens FROM usage
            WHERE tenant_id = %(tenant_id)s AND created_at > now() - interval '30 days'
            ORDER BY created_at DESC LIMIT 20000
        ) latest
        WHERE model = %(model)s AND output_tokens > 0 ORDER BY created_at DESC LIMIT 1000
    ) recent
"""
_OF_ALL: LiteralString = "SELECT * FROM output_quantiles(%(model)s)"


@dataclass(frozen=True, slots=True)
class OutputQuantiles:
    """Output tokens of recent jobs, and whose they were: `tenant` or `all`."""

    source: str
    samples: int
    p50: int
    p90: int
    p99: int


async def output_quantiles(pool: AsyncPool, tenant_id: UUID, model: str) -> OutputQuantiles | None:
    """Of the latest jobs of 30 days. None where there is too little to say anything."""
    mine = await _one(pool, tenant_id, _OF_TENANT, model)
    if mine and mine["samples"] >= MIN_SAMPLES:
        return _quantiles("tenant", mine)
    all_ = await _one(pool, tenant_id, _OF_ALL, model)
    return _quantiles("all", all_) if all_ else None


async def _one(
    pool: AsyncPool, tenant_id: UUID, statement: LiteralString, model: str
) -> dict[str, Any] | None:
    async with as_tenant(pool, tenant_id) as connection:
        cursor = await connection.execute(statement, {"tenant_id": tenant_id, "model": model})
        return await cursor.fetchone()


def _quantiles(source: str, row: dict[str, Any]) -> OutputQuantiles:
    quantiles = (round(row[name]) for name in ("p50", "p90", "p99"))
    return OutputQuantiles(source, row["samples"], *quantiles)
