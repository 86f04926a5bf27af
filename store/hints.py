"""Which queued jobs need a new hint: theirs may be lost with Redis, or was never sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import UUID

from psycopg import Error

from store.apart import apart, at_once_or_apart
from store.pools import DictConnection

# One copy of the re-hinter at a time looks: two would hint the same jobs. "hint"
_LOCK = 0x68696E74

Lane = tuple[str, str, int]  # pool, tier, number

# A job that has waited so long may need a new hint. In a backlog most hints are late, not lost: no
# more are due than the length of the lane's queue says are missing.
_PATIENCE = "interval '15 s'"

MIN_WINDOW = 64

NOBODY = UUID(int=0)  # before all tenants

# Jobs looked at a lane: the first of it, and as many from a tenant on that is the next one each
# time, so that nobody is overlooked for long behind a flood. Read in the order of `jobs_in_turn`,
# and asked for as ranges of rows, since that index alone has their order.
MAX_SEEN = 500
_SEEN = """id, tenant_id, pool, service_tier, lane, run_after, deadline_at,
            cancel_requested_at, hinted_at, hint_count"""
_IN_TURN = "pool, service_tier, lane, tenant_id, model, deadline_at, id"

# A window of hints per pool and tier, twice the live slots: what is hinted next is decided late,
# and Redis stays small. Tenants take turns: the first of each, then the second of each.
# `num_ready` counts the lane's jobs that may need a ticket: more must not wait in its queue.
_CHOOSE = f"""
WITH RECURSIVE room AS (
    SELECT pool, greatest(%(min_window)s, 2 * sum(slots)) AS window_size FROM worker_leases
    WHERE expires_at > now() AND NOT draining GROUP BY pool
), lanes AS (
    (SELECT pool, service_tier, lane FROM jobs WHERE status = 'queued'
    ORDER BY pool, service_tier, lane LIMIT 1)
    UNION ALL
    SELECT next.* FROM lanes l, LATERAL (
        SELECT pool, service_tier, lane FROM jobs WHERE status = 'queued'
            AND (pool, service_tier, lane) > (l.pool, l.service_tier, l.lane)
        ORDER BY pool, service_tier, lane LIMIT 1) next
), seen AS MATERIALIZED (
    SELECT first.* FROM lanes l, LATERAL (
        SELECT {_SEEN} FROM jobs WHERE status = 'queued' AND id <> ALL(%(aside)s::uuid[])
            AND (pool, service_tier, lane) >= (l.pool, l.service_tier, l.lane)
            AND (pool, service_tier, lane) <= (l.pool, l.service_tier, l.lane)
        ORDER BY {_IN_TURN} LIMIT {MAX_SEEN}) first
    UNION
    SELECT later.* FROM lanes l, LATERAL (
        SELECT {_SEEN} FROM jobs WHERE status = 'queued' AND id <> ALL(%(aside)s::uuid[])
            AND (pool, service_tier, lane, tenant_id)
                >= (l.pool, l.service_tier, l.lane, %(start)s)
            AND (pool, service_tier, lane) <= (l.pool, l.service_tier, l.lane)
        ORDER BY {_IN_TURN} LIMIT {MAX_SEEN}) later
), ready AS (
    SELECT *, count(*) OVER (PARTITION BY pool, service_tier, lane) AS num_ready FROM seen
    WHERE run_after <= now() AND deadline_at > now() AND cancel_requested_at IS NULL
), tickets AS (
    SELECT * FROM unnest(%(pools)s::text[], %(tiers)s::text[], %(lanes)s::int[], %(nums)s::int[])
        AS t (pool, service_tier, lane, num_tickets)
), due AS (
    SELECT id, pool, service_tier, lane, num_ready, coalesce(num_tickets, 0) AS num_tickets,
        row_number() OVER (
            PARTITION BY pool, service_tier, tenant_id ORDER BY deadline_at, id) AS turn
    FROM ready LEFT JOIN tickets USING (pool, service_tier, lane)
    WHERE num_ready > coalesce(num_tickets, 0)
        AND (hinted_at IS NULL OR hinted_at < now() - {_PATIENCE})
), missing AS (
    SELECT * FROM (
        SELECT *, row_number() OVER (
            PARTITION BY pool, service_tier, lane ORDER BY turn, id) AS place_in_lane
        FROM due) d
    WHERE place_in_lane <= num_ready - num_tickets
), ranked AS (
    SELECT id, pool, num_ready, row_number() OVER (
        PARTITION BY pool, service_tier ORDER BY turn, id) AS place
    FROM missing
), chosen AS MATERIALIZED (
    SELECT ranked.id, num_ready FROM ranked LEFT JOIN room ON room.pool = ranked.pool
    WHERE place <= coalesce(window_size, %(min_window)s)
)"""
_CHOSEN = """
WITH chosen AS (
    SELECT * FROM unnest(%(ids)s::uuid[], %(nums_ready)s::bigint[]) AS c (id, num_ready)
)"""
_MARK = """
UPDATE jobs SET hinted_at = now(), hint_count = hint_count + 1
FROM chosen WHERE jobs.id = chosen.id AND jobs.status = 'queued'
RETURNING jobs.id, jobs.pool, jobs.service_tier, jobs.lane, jobs.hint_count, chosen.num_ready
"""

_GIVE_BACK = "UPDATE jobs SET hinted_at = NULL WHERE id = ANY(%s) AND status = 'queued'"

_FORGET_BATCH = 2_000
_HINTED = """
WITH hinted AS (
    SELECT id FROM jobs
    WHERE status = 'queued' AND hinted_at <= %(until)s AND (%(within_s)s::float8 IS NULL
        OR hinted_at > %(until)s - make_interval(secs => %(within_s)s))
    LIMIT %(batch)s FOR UPDATE SKIP LOCKED
)"""
_FORGET = " UPDATE jobs SET hinted_at = NULL FROM hinted WHERE jobs.id = hinted.id"

SetAside = Callable[[UUID, Error], None]


def _leave(_job_id: UUID, _error: Error) -> None:
    """It is found again."""


def next_tenant(connection: DictConnection, after: UUID) -> UUID:
    """From whom the next look goes on; nobody: from the first again."""
    row = connection.execute(
        "SELECT id FROM tenants WHERE id > %s ORDER BY id LIMIT 1", (after,)
    ).fetchone()
    return row["id"] if row else NOBODY


def rehint(
    connection: DictConnection,
    num_tickets: Mapping[Lane, int] | None = None,
    *,
    start: UUID = NOBODY,
    aside: Sequence[UUID] = (),
    set_aside: SetAside = _leave,
) -> list[dict[str, Any]]:
    """Mark the jobs whose hint is due as hinted and return them; the caller sends after the commit.

    Looked at are the first jobs of each lane and the first ones from the tenant `start` on.
    `num_tickets` says how many wait in the queues of lanes, as far as that is known. Empty if
    another copy is at it. Jobs that can't be marked hold up no others: `set_aside` is told of them.
    Each part commits by itself: jobs that are marked must not stay locked while others time out.
    """
    parameters = {
        "start": start,
        "aside": list(aside),
        "min_window": MIN_WINDOW,
        **_columns(num_tickets or {}),
    }
    parts = at_once_or_apart(
        lambda: _alone(connection, _CHOOSE + _MARK, parameters),
        lambda: _alone(connection, _CHOOSE + " SELECT id, num_ready FROM chosen", parameters),
        lambda chosen: _alone(connection, _CHOSEN + _MARK, _chosen(chosen)),
        lambda chosen, error: set_aside(chosen["id"], error),
    )
    return [row for part in parts for row in part]


def give_back(connection: DictConnection, job_ids: Sequence[UUID]) -> None:
    """Of these the hint wasn't sent: they are due as soon as their lane misses a ticket."""
    apart(job_ids, lambda some: _forget_these(connection, some), _leave)


def forget_hints(connection: DictConnection, *, within_s: float | None = None) -> int:
    """Take hints for lost, all of them or those given within the last seconds. Returns how many.

    The jobs are hinted again at once, a window at a time. Hints given meanwhile are kept.
    """
    row = connection.execute("SELECT now() AS now").fetchone()
    assert row is not None
    parameters = {"until": row["now"], "within_s": within_s, "batch": _FORGET_BATCH}
    num_forgotten = 0
    while num := _forget_batch(connection, parameters):
        num_forgotten += num
    return num_forgotten


def _forget_batch(connection: DictConnection, parameters: dict[str, Any]) -> int:
    return sum(
        at_once_or_apart(
            lambda: connection.execute(_HINTED + _FORGET, parameters).rowcount,
            lambda: _hinted(connection, parameters),
            lambda some: _forget_these(connection, some),
            _leave,
        )
    )


def _forget_these(connection: DictConnection, job_ids: Sequence[UUID]) -> int:
    return connection.execute(_GIVE_BACK, (list(job_ids),)).rowcount


def _hinted(connection: DictConnection, parameters: dict[str, Any]) -> list[UUID]:
    rows = connection.execute(_HINTED + " SELECT id FROM hinted", parameters).fetchall()
    return [row["id"] for row in rows]


def _alone(
    connection: DictConnection, statement: str, parameters: dict[str, Any]
) -> list[dict[str, Any]]:
    """Nothing while another copy is at it."""
    with connection.transaction():
        row = connection.execute(
            "SELECT pg_try_advisory_xact_lock(%s) AS is_ours", (_LOCK,)
        ).fetchone()
        assert row is not None
        if not row["is_ours"]:
            return []
        return connection.execute(statement.encode(), parameters).fetchall()


def _columns(num_tickets: Mapping[Lane, int]) -> dict[str, Any]:
    pools, tiers, lanes = zip(*num_tickets, strict=True) if num_tickets else ((), (), ())
    nums = list(num_tickets.values())
    return {"pools": list(pools), "tiers": list(tiers), "lanes": list(lanes), "nums": nums}


def _chosen(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {"ids": [row["id"] for row in rows], "nums_ready": [row["num_ready"] for row in rows]}
