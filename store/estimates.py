"""How long a model's answers were, for estimates of what a request will cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from store.pools import AsyncPool, as_tenant

MIN_SAMPLES = 20  # of the tenant's own; with fewer all tenants' are taken

_OF_TENANT = """
    SELECT count(*) AS samples,
        percentile_disc(0.5) WITHIN GROUP (ORDER BY output_tokens)::float8 AS p50,
        percentile_disc(0.9) WITHIN GROUP (ORDER BY output_tokens)::float8 AS p90,
        percentile_disc(0.99) WITHIN GROUP (ORDER BY output_tokens)::float8 AS p99
    FROM (
        SELECT output_tokens FROM usage
        WHERE tenant_id = %(tenant_id)s AND model = %(model)s AND output_tokens > 0
            AND created_at > now() - interval '30 days'
        ORDER BY created_at DESC LIMIT 1000
    ) recent
"""
_OF_ALL = "SELECT * FROM output_quantiles(%(model)s)"


@dataclass(frozen=True, slots=True)
class OutputQuantiles:
    """Output tokens of recent jobs, and whose they were: `tenant` or `all`."""

    source: str
    samples: int
    p50: int
    p90: int
    p99: int


async def output_quantiles(pool: AsyncPool, tenant_id: UUID, model: str) -> OutputQuantiles | None:
    """Of the latest 1,000 jobs of 30 days. None where there is too little to say anything."""
    parameters = {"tenant_id": tenant_id, "model": model}
    async with as_tenant(pool, tenant_id) as connection:
        own = await connection.execute(_OF_TENANT, parameters)
        everybodys = await connection.execute(_OF_ALL, parameters)
        mine, all_ = await own.fetchone(), await everybodys.fetchone()
    if mine and mine["samples"] >= MIN_SAMPLES:
        return _quantiles("tenant", mine)
    return _quantiles("all", all_) if all_ else None


def _quantiles(source: str, row: dict[str, Any]) -> OutputQuantiles:
    quantiles = (round(row[name]) for name in ("p50", "p90", "p99"))
    return OutputQuantiles(source, row["samples"], *quantiles)
