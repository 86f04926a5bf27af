"""What is kept for a while only. Each function does one bounded batch; the caller repeats it."""

from __future__ import annotations

from store.pools import DictConnection

EVENT_LOG_TTL_H = 24  # late readers get the events replayed so long, afterwards the result alone
WEBHOOK_TTL_D = 30
IDEMPOTENCY_TTL_H = 24  # and not while the job is open: its key must find it

_EVENT_LOGS = """
UPDATE job_results r SET event_log = NULL FROM (
    SELECT job_id FROM job_results
    WHERE event_log IS NOT NULL AND created_at < now() - make_interval(hours => %(ttl_h)s)
    ORDER BY job_id LIMIT %(batch)s FOR UPDATE SKIP LOCKED
) expired WHERE r.job_id = expired.job_id
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

# Those of endpoints that are switched off are over when their day is.
_WEBHOOK_DELIVERIES = """
WITH old AS (
    DELETE FROM webhook_deliveries WHERE id IN (
        SELECT id FROM webhook_deliveries
        WHERE created_at < now() - make_interval(days => %(ttl_d)s) AND next_attempt_at IS NULL
        ORDER BY created_at LIMIT %(batch)s FOR UPDATE SKIP LOCKED
    ) RETURNING 1
), late AS (
    UPDATE webhook_deliveries SET next_attempt_at = NULL, given_up_at = now() WHERE id IN (
        SELECT id FROM webhook_deliveries
        WHERE next_attempt_at IS NOT NULL AND try_until < now() - interval '1 hour'
        LIMIT %(batch)s FOR UPDATE SKIP LOCKED
    ) RETURNING 1
)
SELECT greatest((SELECT count(*) FROM old), (SELECT count(*) FROM late)) AS num
"""


def expire_event_logs(connection: DictConnection, *, batch: int) -> int:
    """Drop the event logs of jobs that ended a day ago. Returns how many."""
    return connection.execute(_EVENT_LOGS, {"ttl_h": EVENT_LOG_TTL_H, "batch": batch}).rowcount


def expire_idempotency_keys(connection: DictConnection, *, batch: int) -> int:
    """Forget keys older than a day whose job is over. Returns how many."""
    return connection.execute(
        _IDEMPOTENCY_KEYS, {"ttl_h": IDEMPOTENCY_TTL_H, "batch": batch}
    ).rowcount


def expire_webhook_deliveries(connection: DictConnection, *, batch: int) -> int:
    """Give up those that nobody could send for a day, drop those a month old. Returns the larger
    number of the two.
    """
    parameters = {"ttl_d": WEBHOOK_TTL_D, "batch": batch}
    row = connection.execute(_WEBHOOK_DELIVERIES, parameters).fetchone()
    assert row is not None
    return int(row["num"])


def ensure_partitions(connection: DictConnection, *, months_ahead: int) -> int:
    """Make the partitions of this month and the next ones. Returns how many were missing."""
    row = connection.execute("SELECT ensure_partitions(%s) AS made", (months_ahead,)).fetchone()
    assert row is not None
    return int(row["made"])
