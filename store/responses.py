"""Conversations over responses, and their deletion. Every query names the tenant."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from store.pools import AsyncPool, as_tenant

# Longer chains than any context holds are not followed.
MAX_CHAIN = 1_000

# From the newest back, by the id that each request names. An id of another form ends the chain.
_CHAIN = f"""
WITH RECURSIVE chain AS (
    SELECT %(job_id)s::uuid AS id, 1 AS depth
    UNION ALL
    SELECT substr(p.request->>'previous_response_id', 6)::uuid, c.depth + 1
    FROM chain c JOIN job_payloads p ON p.job_id = c.id AND p.tenant_id = %(tenant_id)s
    WHERE p.request->>'previous_response_id' ~ '^resp_[0-9a-f]{{32}}$' AND c.depth < {MAX_CHAIN}
)
SELECT j.id, j.status, j.tool_format, p.request, r.output
FROM chain c JOIN jobs j ON j.id = c.id AND j.tenant_id = %(tenant_id)s
    AND j.dialect = 'response' AND j.deleted_at IS NULL
JOIN job_payloads p ON p.job_id = j.id LEFT JOIN job_results r ON r.job_id = j.id
ORDER BY c.depth DESC
"""

_DELETE = """
WITH job AS (
    UPDATE jobs SET deleted_at = now()
    WHERE id = %(job_id)s AND tenant_id = %(tenant_id)s AND finished_at IS NOT NULL
        AND deleted_at IS NULL
    RETURNING id
), payload AS (
    DELETE FROM job_payloads p USING job WHERE p.job_id = job.id
), result AS (
    DELETE FROM job_results r USING job WHERE r.job_id = job.id
)
SELECT id FROM job
"""


async def conversation(pool: AsyncPool, tenant_id: UUID, job_id: UUID) -> list[dict[str, Any]]:
    """A response and those before it, oldest first: `{id, status, tool_format, request, output}`.

    Empty if there is no such response; the last one is `job_id`.
    """
    async with as_tenant(pool, tenant_id) as connection:
        cursor = await connection.execute(_CHAIN, {"job_id": job_id, "tenant_id": tenant_id})
        return await cursor.fetchall()


async def delete_response(pool: AsyncPool, tenant_id: UUID, job_id: UUID) -> bool:
    """Delete what a finished job was asked and answered; its bill stays. False if it runs still."""
    async with as_tenant(pool, tenant_id) as connection:
        cursor = await connection.execute(_DELETE, {"job_id": job_id, "tenant_id": tenant_id})
        return await cursor.fetchone() is not None
