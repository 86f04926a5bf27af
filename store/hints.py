"""Which queued jobs need a new hint: theirs may be lost with Redis, or was never sent."""

from __future__ import annotations

from typing import Any

from store.pools import DictConnection

# One copy of the re-hinter at a time looks: two would hint the same jobs. "hint"
_LOCK = 0x68696E74

# A hint is taken for lost after 15 s, then 30, 60 .. of waiting: in a backlog most hints are late,
# not lost, and every surplus ticket costs a claim.
_PATIENCE = "least(interval '15 s' * 2 ^ least(hint_count, 5), interval '10 min')"

MIN_WINDOW = 64

# A window of hints per pool and tier, twice the live slots: what is hinted next is decided late,
# and Redis stays small. Tenants take turns: the first of each, then the second of each.
_REHINT = f"""
WITH room AS (
    SELECT pool, greatest(%(min_window)s, 2 * sum(slots)) AS window_size FROM worker_leases
    WHERE expires_at > now() AND NOT draining GROUP BY pool
), due AS (
    SELECT id, pool, service_tier, row_number() OVER (
        PARTITION BY pool, service_tier, tenant_id ORDER BY deadline_at, id) AS turn
    FROM jobs
    WHERE status = 'queued' AND run_after <= now() AND deadline_at > now()
        AND cancel_requested_at IS NULL
        AND (hinted_at IS NULL OR hinted_at < now() - {_PATIENCE})
), ranked AS (
    SELECT id, pool, row_number() OVER (PARTITION BY pool, service_tier ORDER BY turn, id) AS place
    FROM due
), chosen AS (
    SELECT ranked.id FROM ranked LEFT JOIN room ON room.pool = ranked.pool
    WHERE place <= coalesce(window_size, %(min_window)s)
)
UPDATE jobs SET hinted_at = now(), hint_count = hint_count + 1
FROM chosen WHERE jobs.id = chosen.id AND jobs.status = 'queued'
RETURNING jobs.id, jobs.pool, jobs.service_tier, jobs.lane, jobs.hint_count
"""

_FORGET_BATCH = 2_000
_FORGET = """
WITH hinted AS (
    SELECT id FROM jobs
    WHERE status = 'queued' AND hinted_at <= %(until)s AND (%(within_s)s::float8 IS NULL
        OR hinted_at > %(until)s - make_interval(secs => %(within_s)s))
    LIMIT %(batch)s FOR UPDATE SKIP LOCKED
)
UPDATE jobs SET hinted_at = NULL FROM hinted WHERE jobs.id = hinted.id
"""


def rehint(connection: DictConnection) -> list[dict[str, Any]]:
    """Mark the jobs whose hint is due as hinted and return them; the caller sends after the commit.

    Empty if another copy is at it.
    """
    with connection.transaction():
        row = connection.execute(
            "SELECT pg_try_advisory_xact_lock(%s) AS is_ours", (_LOCK,)
        ).fetchone()
        if row is None or not row["is_ours"]:
            return []
        return connection.execute(_REHINT, {"min_window": MIN_WINDOW}).fetchall()


def forget_hints(connection: DictConnection, *, within_s: float | None = None) -> int:
    """Take hints for lost, all of them or those given within the last seconds. Returns how many.

    The jobs are hinted again at once, a window at a time. Hints given meanwhile are kept.
    """
    row = connection.execute("SELECT now() AS now").fetchone()
    assert row is not None
    parameters = {"until": row["now"], "within_s": within_s, "batch": _FORGET_BATCH}
    num_forgotten = 0
    while num := connection.execute(_FORGET, parameters).rowcount:
        num_forgotten += num
    return num_forgotten
