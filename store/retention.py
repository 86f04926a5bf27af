"""What is kept for a while only. Each function does one bounded batch; the caller repeats it.

Nothing of a job that is open, or of a batch that goes on, is removed. Every statement may be
repeated, and by any number of callers at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import UUID

from psycopg.errors import LockNotAvailable

from store.deletion import LIVE_BATCH
from store.pools import DictConnection
from store.settings import RetentionSettings

IDEMPOTENCY_TTL_H = 24  # and not while the job is open: its key must find it
DAY_S = 86_400.0
HOUR_S = 3_600.0
# A try to drop a month holds up the queries behind it for 200 ms at most; then they get a turn.
MONTH_TRIES = 5
MONTH_PAUSE_S = 0.4

Expiry = Callable[..., int]

# A job is made before it ends, so what ended before the limit has an id below it: only those rows
# are looked at, the oldest first. Each looks its job up by itself (OFFSET 0), however many.
_OLD_ROWS = f"""
SELECT t.job_id FROM {{table}} t LEFT JOIN LATERAL (
    SELECT j.id, j.finished_at, j.batch_id FROM jobs j WHERE j.id = t.job_id OFFSET 0
) j ON true
WHERE t.job_id < uuid7_floor(now() - make_interval(secs => %(keep_s)s)) AND {{only}}
    AND (j.id IS NULL OR j.finished_at < now() - make_interval(secs => %(keep_s)s))
    AND NOT EXISTS (SELECT FROM batches b WHERE b.id = j.batch_id AND {LIVE_BATCH})
ORDER BY t.job_id LIMIT %(batch)s
"""

# Rows that came when their month had no partition yet; all others go with their month.
_JOBS_OUTSIDE_MONTHS = f"""
SELECT j.id AS job_id FROM jobs_default j
WHERE j.id < uuid7_floor(now() - make_interval(secs => %(keep_s)s))
    AND j.finished_at < now() - make_interval(secs => %(keep_s)s)
    AND NOT EXISTS (SELECT FROM batches b WHERE b.id = j.batch_id AND {LIVE_BATCH})
    AND NOT EXISTS (SELECT FROM job_outcomes o WHERE o.job_id = j.id AND o.settled_at IS NULL)
ORDER BY j.id LIMIT %(batch)s
"""

_OUTCOMES_OUTSIDE_MONTHS = """
SELECT o.job_id FROM job_outcomes_default o
WHERE o.job_id < uuid7_floor(now() - make_interval(secs => %(keep_s)s))
    AND o.settled_at < now() - make_interval(secs => %(keep_s)s)
    AND NOT EXISTS (SELECT FROM jobs j WHERE j.id = o.job_id)
ORDER BY o.job_id LIMIT %(batch)s
"""

_BATCHES = f"""
DELETE FROM batches WHERE id = ANY(ARRAY(
    SELECT b.id FROM batches b
    WHERE b.id < uuid7_floor(now() - make_interval(secs => %(keep_s)s)) AND NOT {LIVE_BATCH}
        AND coalesce(b.completed_at, b.failed_at, b.expired_at, b.cancelled_at)
            < now() - make_interval(secs => %(keep_s)s)
    ORDER BY b.id LIMIT %(batch)s FOR UPDATE SKIP LOCKED
))
"""

# Admission renews an expired key in place; the age is looked at again once the row is locked.
_IDEMPOTENCY_KEYS = """
DELETE FROM idempotency_keys k USING (
    SELECT i.tenant_id, i.key FROM idempotency_keys i
    WHERE i.created_at < now() - make_interval(hours => %(ttl_h)s)
        AND NOT EXISTS (SELECT FROM jobs j WHERE j.id = i.job_id AND j.finished_at IS NULL)
    ORDER BY i.created_at LIMIT %(batch)s
) expired WHERE k.tenant_id = expired.tenant_id AND k.key = expired.key
    AND k.created_at < now() - make_interval(hours => %(ttl_h)s)
"""

# Those of endpoints that are switched off are over when their day is. Here and above an array, not
# IN: however many the planner expects, each is then looked up by its id.
_WEBHOOK_DELIVERIES = """
WITH old AS (
    DELETE FROM webhook_deliveries WHERE id = ANY(ARRAY(
        SELECT id FROM webhook_deliveries
        WHERE created_at < now() - make_interval(secs => %(keep_s)s) AND next_attempt_at IS NULL
        ORDER BY created_at LIMIT %(batch)s FOR UPDATE SKIP LOCKED
    )) RETURNING 1
), late AS (
    UPDATE webhook_deliveries SET next_attempt_at = NULL, given_up_at = now()
    WHERE id = ANY(ARRAY(
        SELECT id FROM webhook_deliveries
        WHERE next_attempt_at IS NOT NULL AND try_until < now() - interval '1 hour'
        ORDER BY try_until LIMIT %(batch)s FOR UPDATE SKIP LOCKED
    )) RETURNING 1
)
SELECT greatest((SELECT count(*) FROM old), (SELECT count(*) FROM late)) AS num
"""


_NOTE_RUN = """
INSERT INTO retention_runs (kind, num_removed, error) VALUES (%(kind)s, %(num)s, %(error)s)
ON CONFLICT (kind) DO UPDATE SET ended_at = now(), num_removed = excluded.num_removed,
    error = excluded.error
"""


def expiries(keep: RetentionSettings) -> dict[str, Expiry]:
    """All kinds with their times. Months that are over come first: they go at once, whatever is in
    them, and leave fewer rows to go one by one.
    """
    jobs_s = max(keep.jobs_d, keep.results_d) * DAY_S
    outcomes_s = max(jobs_s, keep.outcomes_d * DAY_S)
    content_s = {
        "job_payloads": keep.payloads_d * DAY_S,
        "job_results": keep.results_d * DAY_S,
        "job_attempts": keep.attempts_d * DAY_S,
    }
    months = {**content_s, "jobs": jobs_s, "job_outcomes": outcomes_s}  # jobs before outcomes
    rows = partial(_remove, "DELETE FROM {table} WHERE job_id = ANY(%s)", _OLD_ROWS)
    return {
        **{f"months_of_{t}": partial(drop_months, parent=t, keep_s=s) for t, s in months.items()},
        "event_logs": partial(expire_event_logs, keep_s=keep.event_logs_h * HOUR_S),
        **{table: partial(rows, table=table, keep_s=s) for table, s in content_s.items()},
        "jobs_outside_months": partial(
            _remove,
            "DELETE FROM jobs WHERE id = ANY(%s)",
            _JOBS_OUTSIDE_MONTHS,
            keep_s=jobs_s,
        ),
        "outcomes_outside_months": partial(
            _remove,
            "DELETE FROM job_outcomes WHERE job_id = ANY(%s)",
            _OUTCOMES_OUTSIDE_MONTHS,
            keep_s=outcomes_s,
        ),
        "batches": partial(expire_batches, keep_s=keep.batches_d * DAY_S),
        "idempotency_keys": expire_idempotency_keys,
        "webhook_deliveries": partial(
            expire_webhook_deliveries, keep_s=keep.webhook_deliveries_d * DAY_S
        ),
    }


def _remove(
    remove: str,
    find: str,
    connection: DictConnection,
    *,
    batch: int,
    keep_s: float,
    table: str = "",
    only: str = "true",
) -> int:
    """Find rows, then remove them by their ids: the plan of neither depends on the other."""
    query = find.format(table=table, only=only).encode()
    found = connection.execute(query, {"keep_s": keep_s, "batch": batch}).fetchall()
    ids: list[UUID] = [row["job_id"] for row in found]
    if ids:
        connection.execute(remove.format(table=table).encode(), (ids,))
    return len(ids)


def expire_event_logs(connection: DictConnection, *, batch: int, keep_s: float) -> int:
    """Drop the event logs of jobs that ended so long ago. Returns how many."""
    remove = "UPDATE job_results SET event_log = NULL WHERE job_id = ANY(%s)"
    only = "t.event_log IS NOT NULL"
    return _remove(
        remove,
        _OLD_ROWS,
        connection,
        batch=batch,
        keep_s=keep_s,
        table="job_results",
        only=only,
    )


def drop_months(connection: DictConnection, *, batch: int, parent: str, keep_s: float) -> int:
    """Drop the partitions of a table that are over, one a transaction. Returns how many.

    One that others are reading is left for the next run, and so are those behind it.
    """
    num, tries = 0, 0
    while num < batch and tries < MONTH_TRIES:
        try:
            row = connection.execute(
                "SELECT drop_oldest_month(%s, %s) AS name", (parent, keep_s)
            ).fetchone()
        except LockNotAvailable:
            tries += 1
            time.sleep(MONTH_PAUSE_S)
            continue
        if row is None or row["name"] is None:
            break
        num += 1
    return num


def expire_batches(connection: DictConnection, *, batch: int, keep_s: float) -> int:
    """Forget batches that ended so long ago; what they wrote expires as files do."""
    return connection.execute(_BATCHES, {"keep_s": keep_s, "batch": batch}).rowcount


def note_run(connection: DictConnection, kind: str, num: int, error: str | None = None) -> None:
    """When a kind was looked after last, and how it went."""
    connection.execute(_NOTE_RUN, {"kind": kind, "num": num, "error": error})


def last_runs(connection: DictConnection) -> list[dict[str, Any]]:
    """`{kind, age_s, num_removed, error}` of each kind."""
    return connection.execute(
        "SELECT kind, extract(epoch FROM now() - ended_at)::float8 AS age_s, num_removed, error"
        " FROM retention_runs ORDER BY kind"
    ).fetchall()


def expire_idempotency_keys(connection: DictConnection, *, batch: int) -> int:
    """Forget keys older than a day whose job is over. Returns how many."""
    return connection.execute(
        _IDEMPOTENCY_KEYS, {"ttl_h": IDEMPOTENCY_TTL_H, "batch": batch}
    ).rowcount


def expire_webhook_deliveries(connection: DictConnection, *, batch: int, keep_s: float) -> int:
    """Give up those that nobody could send for a day, drop those that are so old. Returns the
    larger number of the two.
    """
    parameters = {"keep_s": keep_s, "batch": batch}
    row = connection.execute(_WEBHOOK_DELIVERIES, parameters).fetchone()
    assert row is not None
    return int(row["num"])


def ensure_partitions(connection: DictConnection, *, months_ahead: int) -> int:
    """Make the partitions of this month and the next ones. Returns how many were missing."""
    row = connection.execute("SELECT ensure_partitions(%s) AS made", (months_ahead,)).fetchone()
    assert row is not None
    return int(row["made"])
