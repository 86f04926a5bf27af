"""Conversations over responses. Every query names the tenant."""

from __future__ import annotations

from collections.abc import Mapping
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

# One after the other, so that no more is read than one may have.
_NAMED = f"""
WITH RECURSIVE walk AS (
    SELECT 0 AS place, NULL::uuid AS id, false AS has_input, 0::bigint AS num_bytes
    UNION ALL
    SELECT w.place + 1, asked.id, asked.has_input, w.num_bytes
        + CASE WHEN asked.has_input THEN coalesce(octet_length((p.request->'input')::text), 0)
            ELSE 0 END
        + coalesce(octet_length(r.output::text), 0)
    FROM walk w CROSS JOIN LATERAL (
            SELECT (%(ids)s::uuid[])[w.place + 1] AS id,
                (%(with_input)s::boolean[])[w.place + 1] AS has_input
        ) asked
        LEFT JOIN job_payloads p ON p.job_id = asked.id AND p.tenant_id = %(tenant_id)s
        LEFT JOIN job_results r ON r.job_id = asked.id AND r.tenant_id = %(tenant_id)s
    WHERE w.place < cardinality(%(ids)s::uuid[]) AND w.num_bytes < {MAX_CHAIN_BYTES}
)
SELECT j.id, j.status, j.tool_format, r.output::text AS output, w.num_bytes,
    CASE WHEN w.has_input THEN (p.request->'input')::text END AS input
FROM walk w JOIN jobs j ON j.id = w.id AND j.tenant_id = %(tenant_id)s
    AND j.dialect = 'response' AND j.is_stored AND j.deleted_at IS NULL AND (j.finished_at IS NULL
        OR j.finished_at > now() - make_interval(secs => %(keep_s)s))
LEFT JOIN job_payloads p ON p.job_id = j.id LEFT JOIN job_results r ON r.job_id = j.id
ORDER BY w.place
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


async def named_responses(
    pool: AsyncPool, tenant_id: UUID, wanted: Mapping[UUID, bool]
) -> list[dict[str, Any]]:
    """Some responses by their ids, as far as they are there: `{id, status, tool_format}`, `output`
    and, of those that are true in `wanted`, `input`, both as text of JSON, and behind how many
    bytes of these each is: `num_bytes`.

    Those behind MAX_CHAIN_BYTES are left out; the last one then has as many or more.
    """
    parameters = {
        "ids": list(wanted),
        "with_input": list(wanted.values()),
        "tenant_id": tenant_id,
        "keep_s": kept_s(),
    }
    async with as_tenant(pool, tenant_id) as connection:
        cursor = await connection.execute(_NAMED, parameters)
        return await cursor.fetchall()
