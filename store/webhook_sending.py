"""Deliveries of webhooks as their sender takes them and notes what came of them.

A delivery is leased by moving its next attempt: a sender that dies leaves it to be sent again,
under the same event id. What a sender notes counts for the attempt that it took, for no later one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, LiteralString
from uuid import UUID

from psycopg import Error

from store.apart import at_once_or_apart
from store.pools import DictConnection

LEASE_S = 60.0  # an attempt takes 13 s at most
MAX_LEASE_S = 14_400.0
LATE_S = 3_600.0  # after its day a delivery is given up
AT_ONCE = 4  # deliveries to an endpoint
ENDPOINTS_AT_ONCE = 4  # of a tenant
DEAD_AFTER_H = 24  # of failures alone an endpoint is switched off

# Endpoints looked at for a round; those behind them have the next rounds.
MAX_SEEN = 500
FIRST = UUID(int=0)  # behind it are all

# From one endpoint with something to send to the next, by the index of what is to be sent: those
# with nothing to send cost nothing, however many there are.
_DUE = """
WITH RECURSIVE pending AS (
    (SELECT endpoint_id, next_attempt_at, 1 AS place FROM webhook_deliveries
    WHERE next_attempt_at IS NOT NULL AND endpoint_id > %(after)s
    ORDER BY endpoint_id, next_attempt_at LIMIT 1)
    UNION ALL
    SELECT next.*, p.place + 1 FROM pending p, LATERAL (
        SELECT endpoint_id, next_attempt_at FROM webhook_deliveries
        WHERE next_attempt_at IS NOT NULL AND endpoint_id > p.endpoint_id
        ORDER BY endpoint_id, next_attempt_at LIMIT 1) next
    WHERE p.place < %(max_seen)s
)
SELECT endpoint_id, next_attempt_at <= now() AS is_due FROM pending ORDER BY place
"""

# First one endpoint of each tenant, then a second one, up to a few. Which of them is left to
# chance, so that many with a backlog can't keep one from its turn. Those in `busy` had a turn.
#
# Of those past their day, which retention gives up, and of those set aside there are few.
_CHOOSE = f"""
WITH chosen AS MATERIALIZED (
    SELECT due.id
    FROM (
        SELECT e.id, row_number() OVER (
            PARTITION BY e.tenant_id ORDER BY e.id = ANY(%(busy)s::uuid[]) DESC, random()) AS turn
        FROM webhook_endpoints e
        WHERE e.is_enabled AND e.id = ANY(%(busy)s::uuid[] || %(due)s::uuid[])
        ORDER BY turn, random()
    ) w CROSS JOIN LATERAL (
        SELECT id FROM webhook_deliveries
        WHERE endpoint_id = w.id AND next_attempt_at <= now()
            AND try_until > now() - interval '{LATE_S} seconds' AND id <> ALL(%(aside)s::uuid[])
        ORDER BY next_attempt_at LIMIT {AT_ONCE} FOR UPDATE SKIP LOCKED
    ) due
    WHERE w.turn <= {ENDPOINTS_AT_ONCE} AND w.id <> ALL(%(busy)s::uuid[])
    LIMIT %(limit)s
)"""
_THESE = """
WITH chosen AS MATERIALIZED (
    SELECT id FROM webhook_deliveries WHERE id = ANY(%(ids)s) AND next_attempt_at <= now()
    FOR UPDATE SKIP LOCKED
)"""
# An outcome that never comes, since the sender died or it can't be noted, is an attempt that
# failed: the next one is ever later.
_LEASE = f"""
UPDATE webhook_deliveries d SET attempts = d.attempts + 1, next_attempt_at = now()
    + make_interval(secs => least({LEASE_S} * 2 ^ d.attempts, {MAX_LEASE_S}))
FROM chosen, webhook_endpoints e
WHERE d.id = chosen.id AND e.id = d.endpoint_id
RETURNING d.*, e.url, e.secret, extract(epoch FROM now())::bigint AS taken_at_s,
    CASE WHEN e.previous_until > now() THEN e.previous_secret END AS previous_secret
"""

_DELIVERED = """
WITH delivery AS (
    UPDATE webhook_deliveries SET delivered_at = now(), next_attempt_at = NULL,
        last_status_code = %(status_code)s, last_error = NULL
    WHERE id = %(id)s AND attempts = %(attempts)s RETURNING endpoint_id
)
UPDATE webhook_endpoints w SET failing_since = NULL FROM delivery d
WHERE w.id = d.endpoint_id AND w.failing_since IS NOT NULL
"""

_FAILED = f"""
WITH delivery AS (
    UPDATE webhook_deliveries SET last_status_code = %(status_code)s, last_error = %(error)s,
        next_attempt_at = CASE WHEN now() + make_interval(secs => %(delay_s)s) <= try_until
            THEN now() + make_interval(secs => %(delay_s)s) END,
        given_up_at = CASE WHEN now() + make_interval(secs => %(delay_s)s) > try_until
            THEN now() END
    WHERE id = %(id)s AND attempts = %(attempts)s RETURNING endpoint_id
)
UPDATE webhook_endpoints w SET failing_since = coalesce(w.failing_since, now()),
    is_enabled = w.is_enabled AND NOT v.is_dead,
    disabled_reason = CASE WHEN v.is_dead THEN v.reason ELSE w.disabled_reason END
FROM delivery d, LATERAL (
    SELECT %(is_gone)s OR coalesce(e.failing_since < now() - interval '{DEAD_AFTER_H} hours', false)
            AS is_dead,
        CASE WHEN %(is_gone)s THEN 'The endpoint answered 410 Gone.'
            ELSE 'Every delivery failed for {DEAD_AFTER_H} hours.' END AS reason
    FROM webhook_endpoints e WHERE e.id = d.endpoint_id
) v
WHERE w.id = d.endpoint_id
RETURNING NOT w.is_enabled AS is_disabled
"""


@dataclass(frozen=True, slots=True)
class DueEndpoints:
    """Endpoints with something to send now, and behind which one the next round goes on."""

    ids: Sequence[UUID]
    last: UUID


SetAside = Callable[[UUID, Error], None]


def _leave(_delivery_id: UUID, _error: Error) -> None:
    """It is found again."""


def due_endpoints(
    connection: DictConnection, *, after: UUID = FIRST, max_seen: int = MAX_SEEN
) -> DueEndpoints:
    """A round: of the endpoints behind `after` that something is to be sent to, now or later, the
    first ones. The round that reaches the last one is followed by one from the first on.
    """
    rows = connection.execute(_DUE, {"after": after, "max_seen": max_seen}).fetchall()
    last = rows[-1]["endpoint_id"] if len(rows) == max_seen else FIRST
    return DueEndpoints([row["endpoint_id"] for row in rows if row["is_due"]], last)


def take(
    connection: DictConnection,
    *,
    due: Sequence[UUID],
    busy: Sequence[UUID],
    limit: int,
    aside: Sequence[UUID] = (),
    set_aside: SetAside = _leave,
) -> list[dict[str, Any]]:
    """What is to be sent to these endpoints now, with `url`, `secret`, `previous_secret` of each;
    nothing to those in `busy`. One that can't be taken holds up no other: `set_aside` is told.
    """
    parameters = {"due": list(due), "busy": list(busy), "limit": limit, "aside": list(aside)}
    parts = at_once_or_apart(
        lambda: connection.execute(_CHOOSE + _LEASE, parameters).fetchall(),
        lambda: _ids(connection, _CHOOSE + " SELECT id FROM chosen", parameters),
        lambda ids: connection.execute(_THESE + _LEASE, {"ids": list(ids)}).fetchall(),
        set_aside,
    )
    return [delivery for part in parts for delivery in part]


def note_delivered(connection: DictConnection, delivery: dict[str, Any], status_code: int) -> None:
    """The endpoint took it."""
    connection.execute(
        _DELIVERED,
        {"id": delivery["id"], "attempts": delivery["attempts"], "status_code": status_code},
    )


def note_failed(
    connection: DictConnection,
    delivery: dict[str, Any],
    *,
    status_code: int | None,
    error: str,
    delay_s: float,
    is_gone: bool,
) -> bool:
    """Try again after `delay_s`, or never if its day is over. True: the endpoint is switched off,
    since it `is_gone` or failed for a day.
    """
    parameters = {
        "id": delivery["id"],
        "attempts": delivery["attempts"],
        "status_code": status_code,
        "error": error,
        "delay_s": delay_s,
        "is_gone": is_gone,
    }
    row = connection.execute(_FAILED, parameters).fetchone()
    return bool(row and row["is_disabled"])


def _ids(
    connection: DictConnection, statement: LiteralString, parameters: dict[str, Any]
) -> list[UUID]:
    return [row["id"] for row in connection.execute(statement, parameters).fetchall()]
