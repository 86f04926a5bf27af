"""What a tenant used and has left, for `GET /v1/usage`. Reads `usage` and the account, no jobs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from store.pools import AsyncPool, as_tenant

_BY_MODEL_AND_TIER = """
    SELECT model, service_tier, count(*) AS num_jobs, sum(input_tokens)::bigint AS input_tokens,
        sum(cached_tokens)::bigint AS cached_tokens, sum(output_tokens)::bigint AS output_tokens,
        sum(amount_micros)::bigint AS amount_micros
    FROM usage WHERE tenant_id = %(tenant_id)s
        AND created_at >= %(start)s AND created_at < %(end)s
    GROUP BY model, service_tier ORDER BY model, service_tier
"""

_ACCOUNT = """
    SELECT currency, balance_micros, held_micros, credit_limit_micros FROM accounts
    WHERE tenant_id = %(tenant_id)s
"""


@dataclass(frozen=True, slots=True)
class UsageReport:
    """Sums of one period, and the account as it stands now."""

    lines: list[dict[str, Any]]  # one a model and tier
    currency: str
    balance_micros: int
    held_micros: int  # reserved by jobs that are not settled yet
    credit_limit_micros: int


async def usage_report(
    pool: AsyncPool, tenant_id: UUID, *, start: datetime, end: datetime
) -> UsageReport:
    """Jobs that ended in [start, end) and are settled."""
    parameters = {"tenant_id": tenant_id, "start": start, "end": end}
    async with as_tenant(pool, tenant_id) as connection:
        lines = await connection.execute(_BY_MODEL_AND_TIER, parameters)
        account = await connection.execute(_ACCOUNT, parameters)
        rows, row = await lines.fetchall(), await account.fetchone()
    assert row is not None  # a tenant is made together with its account
    return UsageReport(lines=rows, **row)
