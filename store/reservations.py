"""Reservations: money set aside for a job at admission. Each resolves exactly once, to `settled`
or to `released`; store/admission.py makes them, store/outcomes.py resolves them with the charge.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, LiteralString
from uuid import UUID

from psycopg import Error

from store.apart import at_once_or_apart
from store.pools import DictConnection

# Nothing should ever need this: the end of a job always leaves an outcome, and settling it resolves
# the reservation in the same statement. What is found here is counted as an anomaly.
# The order of locks is that of settling: reservations, then accounts by id.
#
# A backlog holds millions, so a run looks at some: those from a moment on that is drawn anew each
# time, and the first ones. Each is looked up by its id (OFFSET 0): a join would read all jobs.
_ORPHANS = """
WITH bounds AS MATERIALIZED (
    SELECT first, until, first + random() * (until - first) AS drawn
    FROM (SELECT min(created_at) AS first, now() - make_interval(secs => %(older_than_s)s) AS until
        FROM reservations WHERE state = 'held') b
), held AS MATERIALIZED (
    (SELECT job_id FROM reservations WHERE state = 'held'
        AND created_at >= (SELECT drawn FROM bounds) AND created_at < (SELECT until FROM bounds)
    ORDER BY created_at LIMIT %(limit)s)
    UNION ALL
    (SELECT job_id FROM reservations WHERE state = 'held'
        AND created_at < (SELECT least(drawn, until) FROM bounds)
    ORDER BY created_at LIMIT %(limit)s)
), orphans AS MATERIALIZED (
    SELECT h.job_id FROM held h
    LEFT JOIN LATERAL (
        SELECT j.id, j.finished_at FROM jobs j WHERE j.id = h.job_id OFFSET 0) j ON true
    LEFT JOIN LATERAL (
        SELECT o.job_id, o.settled_at FROM job_outcomes o WHERE o.job_id = h.job_id OFFSET 0
    ) o ON true
    WHERE j.id IS NULL AND o.job_id IS NULL
        OR j.finished_at IS NOT NULL AND o.settled_at IS NOT NULL
)"""
_THESE = "WITH orphans AS (SELECT job_id FROM unnest(%(ids)s::uuid[]) AS job_id)"
_RELEASE = """
, locked_orphans AS MATERIALIZED (
    SELECT r.job_id FROM reservations r
    WHERE r.job_id = ANY(ARRAY(SELECT job_id FROM orphans)) AND r.state = 'held'
    ORDER BY r.job_id FOR UPDATE SKIP LOCKED
), released AS (
    UPDATE reservations r SET state = 'released', settled_micros = 0, resolved_at = now()
    FROM locked_orphans o WHERE r.job_id = o.job_id AND r.state = 'held'
    RETURNING r.tenant_id, r.amount_micros
), totals AS (
    SELECT tenant_id, sum(amount_micros)::bigint AS freed FROM released GROUP BY tenant_id
), locked AS (
    SELECT tenant_id FROM accounts WHERE tenant_id IN (SELECT tenant_id FROM totals)
    ORDER BY tenant_id FOR UPDATE
), moved AS (
    UPDATE accounts a SET held_micros = a.held_micros - t.freed
    FROM totals t JOIN locked l ON l.tenant_id = t.tenant_id WHERE a.tenant_id = t.tenant_id
)
SELECT count(*) AS num_released FROM released
"""

# Admission commits job and reservation together, so a reservation without a job is never young.
ORPHAN_AGE_S = 3_600.0


def release_orphans(
    connection: DictConnection,
    *,
    older_than_s: float = ORPHAN_AGE_S,
    limit: int = 1_000,
    set_aside: Callable[[UUID, Error], None] = lambda _job_id, _error: None,
) -> int:
    """Release held reservations that no settling will ever resolve. Returns how many.

    An orphan is one whose job is over and settled, or whose job doesn't exist. One run looks at no
    more than twice `limit`, in time at all. One that can't be released holds up no other.
    """
    parameters = {"older_than_s": older_than_s, "limit": limit}
    return sum(
        at_once_or_apart(
            lambda: _num_released(connection, _ORPHANS + _RELEASE, parameters),
            lambda: _orphans(connection, parameters),
            lambda ids: _num_released(connection, _THESE + _RELEASE, {"ids": list(ids)}),
            set_aside,
        )
    )


def _orphans(connection: DictConnection, parameters: dict[str, Any]) -> list[UUID]:
    rows = connection.execute(_ORPHANS + " SELECT job_id FROM orphans", parameters).fetchall()
    return [row["job_id"] for row in rows]


def _num_released(
    connection: DictConnection, statement: LiteralString, parameters: dict[str, Any]
) -> int:
    row = connection.execute(statement, parameters).fetchone()
    assert row is not None
    return int(row["num_released"])
