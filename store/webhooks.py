"""Webhook endpoints and deliveries as the API reads and writes them. Every query names the tenant.

Secrets can be written here and not be read: only the sender's role sees them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID, uuid4

from psycopg import sql

from store.pools import SET_TENANT, AsyncPool, as_tenant
from tasks.ids import GREATEST_ID

MAX_ENDPOINTS = 10  # a tenant

Row = dict[str, Any]

_SHOWN = (
    "id, url, event_types, name, secret_hint, is_enabled, disabled_reason, created_at, updated_at"
)

# The lock: two requests at once would count each other's endpoint in or out as they like.
_CREATE = f"""
WITH tenant AS MATERIALIZED (
    SELECT pg_advisory_xact_lock(hashtextextended('webhook_endpoints' || %(tenant_id)s::text, 0))
)
INSERT INTO webhook_endpoints (id, tenant_id, url, event_types, name, secret, secret_hint)
SELECT %(id)s, %(tenant_id)s, %(url)s, %(event_types)s, %(name)s, %(secret)s, %(secret_hint)s
FROM tenant RETURNING {_SHOWN}
"""

_COUNT = "SELECT count(*) AS num FROM webhook_endpoints WHERE tenant_id = %s"

_OLDER = """
    AND id < %(before)s ORDER BY id DESC LIMIT %(limit)s
"""

_ROTATE = f"""
UPDATE webhook_endpoints SET secret = %(secret)s, secret_hint = %(hint)s, updated_at = now(),
    previous_until = now() + make_interval(hours => %(keep_h)s)
WHERE tenant_id = %(tenant_id)s AND id = %(id)s RETURNING {_SHOWN}
"""

_DELETE = """
WITH endpoint AS (
    DELETE FROM webhook_endpoints WHERE tenant_id = %(tenant_id)s AND id = %(id)s RETURNING id
), deliveries AS (
    DELETE FROM webhook_deliveries d USING endpoint e
    WHERE d.endpoint_id = e.id AND d.tenant_id = %(tenant_id)s
)
SELECT id FROM endpoint
"""

_DELIVERIES = """
SELECT * FROM webhook_deliveries
WHERE tenant_id = %(tenant_id)s AND endpoint_id = %(endpoint_id)s
    AND (%(after)s::uuid IS NULL OR (created_at, id) < (
        SELECT created_at, id FROM webhook_deliveries
        WHERE id = %(after)s AND endpoint_id = %(endpoint_id)s)){of_state}
ORDER BY created_at DESC, id DESC LIMIT %(limit)s
"""
# Each has an index of its own, which finds the few of one state among very many of others.
_OF_STATE = {
    "pending": " AND next_attempt_at IS NOT NULL",
    "delivered": " AND delivered_at IS NOT NULL",
    "failed": " AND given_up_at IS NOT NULL",
}

_RESEND = """
UPDATE webhook_deliveries SET attempts = 0, next_attempt_at = now(), delivered_at = NULL,
    given_up_at = NULL, try_until = now() + interval '24 hours'
WHERE tenant_id = %s AND endpoint_id = %s AND id = %s RETURNING *
"""

# Once and no more: who tries an endpoint out waits for what it says.
_SAMPLE = """
INSERT INTO webhook_deliveries (endpoint_id, tenant_id, event_id, type, object_id, try_until)
SELECT id, tenant_id, %(event_id)s, %(type)s, %(object_id)s, now() FROM webhook_endpoints
WHERE tenant_id = %(tenant_id)s AND id = %(id)s RETURNING *
"""


async def create_endpoint(pool: AsyncPool, tenant_id: UUID, new: Mapping[str, Any]) -> Row | None:
    """`new` has id, url, event_types, name, secret, secret_hint. None if the tenant has
    MAX_ENDPOINTS already.
    """
    values = {**new, "tenant_id": tenant_id}
    async with pool.connection() as connection, connection.transaction():
        await connection.execute(SET_TENANT, (str(tenant_id),))
        row = await (await connection.execute(_CREATE, values)).fetchone()
        counted = await (await connection.execute(_COUNT, (tenant_id,))).fetchone()
        assert counted is not None
        if counted["num"] > MAX_ENDPOINTS:
            await connection.execute("DELETE FROM webhook_endpoints WHERE id = %(id)s", values)
            return None
    return row


async def get_endpoint(pool: AsyncPool, tenant_id: UUID, endpoint_id: UUID) -> Row | None:
    """A tenant's endpoint, without its secret."""
    query = f"SELECT {_SHOWN} FROM webhook_endpoints WHERE tenant_id = %s AND id = %s"
    return await _one(pool, tenant_id, query, (tenant_id, endpoint_id))


async def list_endpoints(
    pool: AsyncPool, tenant_id: UUID, *, after: UUID | None, limit: int
) -> list[Row]:
    """Newest first, those older than `after`."""
    parameters = {"tenant_id": tenant_id, "before": after or GREATEST_ID, "limit": limit}
    query = f"SELECT {_SHOWN} FROM webhook_endpoints WHERE tenant_id = %(tenant_id)s {_OLDER}"
    async with as_tenant(pool, tenant_id) as connection:
        return await (await connection.execute(query, parameters)).fetchall()


async def update_endpoint(
    pool: AsyncPool, tenant_id: UUID, endpoint_id: UUID, changes: Mapping[str, Any]
) -> Row | None:
    """Set columns; None if there is no such endpoint. One that is enabled again begins anew."""
    if not changes:
        return await get_endpoint(pool, tenant_id, endpoint_id)
    pairs = [(sql.Identifier(name), sql.Placeholder(name)) for name in sorted(changes)]
    anew = "disabled_reason = NULL, failing_since = NULL," if changes.get("is_enabled") else ""
    query = sql.SQL(
        f"UPDATE webhook_endpoints SET {{sets}}, {anew}"
        " updated_at = CASE WHEN {changed} THEN now() ELSE updated_at END"
        f" WHERE tenant_id = %(tenant_id)s AND id = %(id)s RETURNING {_SHOWN}"
    ).format(
        sets=sql.SQL(", ").join(sql.SQL("{} = {}").format(*pair) for pair in pairs),
        changed=sql.SQL(" OR ").join(
            sql.SQL("{} IS DISTINCT FROM {}").format(*pair) for pair in pairs
        ),
    )
    parameters = {**changes, "tenant_id": tenant_id, "id": endpoint_id}
    return await _one(pool, tenant_id, query, parameters)


async def rotate_secret(
    pool: AsyncPool, tenant_id: UUID, endpoint_id: UUID, *, secret: bytes, hint: str, keep_h: int
) -> Row | None:
    """A new secret; the one before it signs too for `keep_h` hours."""
    parameters = {
        "tenant_id": tenant_id,
        "id": endpoint_id,
        "secret": secret,
        "hint": hint,
        "keep_h": keep_h,
    }
    return await _one(pool, tenant_id, _ROTATE, parameters)


async def delete_endpoint(pool: AsyncPool, tenant_id: UUID, endpoint_id: UUID) -> bool:
    """With its deliveries. False if there is no such endpoint."""
    parameters = {"tenant_id": tenant_id, "id": endpoint_id}
    return await _one(pool, tenant_id, _DELETE, parameters) is not None


async def list_deliveries(
    pool: AsyncPool,
    tenant_id: UUID,
    endpoint_id: UUID,
    *,
    status: str | None,
    after: UUID | None,
    limit: int,
) -> list[Row]:
    """Newest first. `status`: pending, delivered or failed."""
    parameters = {
        "tenant_id": tenant_id,
        "endpoint_id": endpoint_id,
        "after": after,
        "limit": limit,
    }
    query = _DELIVERIES.format(of_state=_OF_STATE[status] if status else "")
    async with as_tenant(pool, tenant_id) as connection:
        return await (await connection.execute(query.encode(), parameters)).fetchall()


async def get_delivery(pool: AsyncPool, tenant_id: UUID, delivery_id: UUID) -> Row | None:
    """A tenant's delivery as it is now."""
    query = "SELECT * FROM webhook_deliveries WHERE tenant_id = %s AND id = %s"
    return await _one(pool, tenant_id, query, (tenant_id, delivery_id))


async def resend(
    pool: AsyncPool, tenant_id: UUID, endpoint_id: UUID, delivery_id: UUID
) -> Row | None:
    """Deliver once more, for another day if need be; None if there is no such delivery."""
    return await _one(pool, tenant_id, _RESEND, (tenant_id, endpoint_id, delivery_id))


async def add_sample(
    pool: AsyncPool, tenant_id: UUID, endpoint_id: UUID, *, type: str, object_id: str
) -> Row | None:
    """An event that nothing happened for; None if there is no such endpoint."""
    parameters = {
        "tenant_id": tenant_id,
        "id": endpoint_id,
        "event_id": uuid4(),
        "type": type,
        "object_id": object_id,
    }
    return await _one(pool, tenant_id, _SAMPLE, parameters)


async def _one(
    pool: AsyncPool,
    tenant_id: UUID,
    query: str | sql.Composed,
    parameters: Sequence[Any] | Mapping[str, Any],
) -> Row | None:
    async with as_tenant(pool, tenant_id) as connection:
        return await (await connection.execute(query, parameters)).fetchone()
