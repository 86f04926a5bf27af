"""Conversations over responses. Every query names the tenant."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from store.jobs import kept_s
from store.pools import AsyncPool, as_tenant

# Longer chains than any context holds are not followed.
MAX_CHAIN = 1_000
MAX_CHAIN_BYTES = 8 << 20  # of requests and answers as JSON

# From the newest back, by the id that each request names. What is deleted ends the chain, and so
# does what is too much: the caller sees that its first response names another one.
_CHAIN = f"""
WITH RECURSIVE chain AS (
    SELECT %(job_id)s::uuid AS id, 1 AS depth, 0::bigint AS num_bytes
    UNION ALL
    SELECT substr(p.request->>'previous_response_id', 6)::uuid, c.depth + 1, c.num_bytes
        + octet_length(p.request::text) + coalesce(octet_length(r.output::text), 0)
    FROM chain c JOIN job_payloads p ON p.job_id = c.id AND p.tenant_id = %(tenant_id)s
        LEFT JOIN job_results r ON r.job_id = c.id
    WHERE p.request->>'previous_response_id' ~ '^resp_[0-9a-f]{{32}}$' AND c.depth < {MAX_CHAIN}
        AND c.num_bytes < {MAX_CHAIN_BYTES}
)
SELECT j.id, j.status, j.tool_format, p.request::text AS request, r.output::text AS output, c.depth,
    c.num_bytes, p.request->>'previous_response_id' AS previous_id,
    coalesce(p.request->>'store', '') <> 'false' AS is_stored
FROM chain c JOIN jobs j ON j.id = c.id AND j.tenant_id = %(tenant_id)s
    AND j.dialect = 'response' AND j.deleted_at IS NULL AND (j.finished_at IS NULL
        OR j.finished_at > now() - make_interval(secs => %(keep_s)s))
JOIN job_payloads p ON p.job_id = j.id LEFT JOIN job_results r ON r.job_id = j.id
ORDER BY c.depth DESC
"""


async def conversation(pool: AsyncPool, tenant_id: UUID, job_id: UUID) -> list[dict[str, Any]]:
    """A response and those before it, oldest first: `{id, status, tool_format, previous_id,
    is_stored}`, `{request, output}` as text of JSON, which can be MBs, and how far back and behind
    how many bytes it is: `{depth, num_bytes}`.

    Empty if there is no such response; the last one is `job_id`.
    """
    parameters = {"job_id": job_id, "tenant_id": tenant_id, "keep_s": kept_s()}
    async with as_tenant(pool, tenant_id) as connection:
        cursor = await connection.execute(_CHAIN, parameters)
        return await cursor.fetchall()
