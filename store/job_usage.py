"""What each settled job used, page by page: in the order in which the jobs ended, or were settled.

A job may be settled long after its end, before others in the first list that were read already.
Only the second list can be followed without missing any.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from store.pools import AsyncPool, as_tenant

# The first bound on the time is what the index needs; the pair tells jobs that ended at once apart.
_COLUMNS = """
    SELECT job_id, created_at, model, service_tier, status, payer, input_tokens, cached_tokens,
        output_tokens, amount_micros, currency, end_user, api_key_id, settled_seq
    FROM usage
"""
_LIST = f"""{_COLUMNS}
    WHERE tenant_id = %(tenant_id)s AND created_at >= %(at)s AND created_at < %(end)s
        AND (created_at, job_id) > (%(at)s, %(job_id)s)
    ORDER BY created_at, job_id LIMIT %(limit)s
"""

# Numbers rise in the order of commits (store/outcomes.py): none below one that is seen comes later.
_LIST_SETTLED = f"""{_COLUMNS}
    WHERE tenant_id = %(tenant_id)s AND settled_seq > %(after)s
    ORDER BY settled_seq LIMIT %(limit)s
"""

_FIND = "SELECT created_at, job_id, settled_seq FROM usage WHERE tenant_id = %s AND job_id = %s"

_BEFORE_ANY = UUID(int=0)


@dataclass(frozen=True, slots=True, order=True)
class Mark:
    """A place in the list: behind the job `job_id`, which ended at `at`."""

    at: datetime
    job_id: UUID = _BEFORE_ANY

    @classmethod
    def behind(cls, row: Mapping[str, Any]) -> Mark:
        """Behind a row of the list."""
        return cls(row["created_at"], row["job_id"])


async def list_job_usage(
    pool: AsyncPool, tenant_id: UUID, *, after: Mark, end: datetime, limit: int
) -> list[dict[str, Any]]:
    """The next settled jobs of a tenant that ended before `end`; `created_at` is when they did."""
    parameters = {
        "tenant_id": tenant_id,
        "at": after.at,
        "job_id": after.job_id,
        "end": end,
        "limit": limit,
    }
    async with as_tenant(pool, tenant_id) as connection:
        cursor = await connection.execute(_LIST, parameters)
        return await cursor.fetchall()


async def list_settled(
    pool: AsyncPool, tenant_id: UUID, *, after: int, limit: int
) -> list[dict[str, Any]]:
    """The next jobs of a tenant behind a number, as they were settled."""
    parameters = {"tenant_id": tenant_id, "after": after, "limit": limit}
    async with as_tenant(pool, tenant_id) as connection:
        cursor = await connection.execute(_LIST_SETTLED, parameters)
        return await cursor.fetchall()


async def find_job_usage(
    pool: AsyncPool, tenant_id: UUID, job_id: UUID
) -> Mapping[str, Any] | None:
    """When a job ended, and its number; None if the tenant has no settled one of this id."""
    async with as_tenant(pool, tenant_id) as connection:
        cursor = await connection.execute(_FIND, (tenant_id, job_id))
        return await cursor.fetchone()
