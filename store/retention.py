"""What is kept for a while only. Each kind does one bounded batch a call; the caller repeats it.

A batch is looked at in the order of an index, behind the last one: what must stay and what can't be
removed is passed over once a round, however much of it there is. Nothing of a job that is open, or
of a batch that goes on, is removed. Every statement may be repeated, and by any number of callers.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol
from uuid import UUID

from psycopg import Error
from psycopg.errors import LockNotAvailable

from store.apart import apart
from store.deletion import LIVE_BATCH
from store.faults import is_outage, is_units, reason
from store.pools import DictConnection
from store.settings import RetentionSettings
from store.webhook_sending import LATE_S

IDEMPOTENCY_TTL_H = 24  # and not while the job is open: its key must find it
DAY_S = 86_400.0
HOUR_S = 3_600.0
# A try to drop a month holds up the queries behind it for 200 ms at most; then they get a turn.
MONTH_PAUSES = 4  # of all months of a table together
MONTH_PAUSE_S = 0.4

Mark = Mapping[str, Any]  # the columns that rows are ordered by, and their values in one row

_FIRST_ID: Mark = {"id": UUID(int=0)}

# A job is made before it ends, so what ended before the limit has an id below it: only those rows
# are looked at. Each looks its job up by itself (OFFSET 0), however many.
_OLD_ROWS = f"""
SELECT t.id, (j.id IS NULL OR j.finished_at < now() - make_interval(secs => %(keep_s)s))
    AND NOT EXISTS (SELECT FROM batches b WHERE b.id = j.batch_id AND {LIVE_BATCH}) AS is_over
FROM (
    SELECT job_id AS id FROM {{table}}
    WHERE job_id > %(id)s AND job_id < uuid7_floor(now() - make_interval(secs => %(keep_s)s))
        AND {{only}}
    ORDER BY job_id LIMIT %(batch)s
) t LEFT JOIN LATERAL (
    SELECT j.id, j.finished_at, j.batch_id FROM jobs j WHERE j.id = t.id OFFSET 0
) j ON true
ORDER BY t.id
"""

# Rows that came when their month had no partition yet; all others go with their month.
_JOBS_OUTSIDE_MONTHS = f"""
SELECT j.id, j.finished_at < now() - make_interval(secs => %(keep_s)s)
    AND NOT EXISTS (SELECT FROM batches b WHERE b.id = j.batch_id AND {LIVE_BATCH})
    AND NOT EXISTS (SELECT FROM job_outcomes o WHERE o.job_id = j.id AND o.settled_at IS NULL)
        AS is_over
FROM jobs_default j
WHERE j.id > %(id)s AND j.id < uuid7_floor(now() - make_interval(secs => %(keep_s)s))
ORDER BY j.id LIMIT %(batch)s
"""

_OUTCOMES_OUTSIDE_MONTHS = """
SELECT o.job_id AS id, o.settled_at < now() - make_interval(secs => %(keep_s)s)
    AND NOT EXISTS (SELECT FROM jobs j WHERE j.id = o.job_id) AS is_over
FROM job_outcomes_default o
WHERE o.job_id > %(id)s AND o.job_id < uuid7_floor(now() - make_interval(secs => %(keep_s)s))
ORDER BY o.job_id LIMIT %(batch)s
"""

_BATCHES = f"""
SELECT b.id, NOT {LIVE_BATCH}
    AND coalesce(b.completed_at, b.failed_at, b.expired_at, b.cancelled_at)
        < now() - make_interval(secs => %(keep_s)s) AS is_over
FROM batches b
WHERE b.id > %(id)s AND b.id < uuid7_floor(now() - make_interval(secs => %(keep_s)s))
ORDER BY b.id LIMIT %(batch)s
"""

_IDEMPOTENCY_KEYS = """
SELECT i.created_at, i.tenant_id, i.key,
    NOT EXISTS (SELECT FROM jobs j WHERE j.id = i.job_id AND j.finished_at IS NULL) AS is_over
FROM idempotency_keys i
WHERE (i.created_at, i.tenant_id, i.key) > (%(created_at)s, %(tenant_id)s::uuid, %(key)s)
    AND i.created_at < now() - make_interval(secs => %(keep_s)s)
ORDER BY i.created_at, i.tenant_id, i.key LIMIT %(batch)s
"""
# Admission renews an expired key in place; the age is looked at again once the row is locked.
_FORGET_KEYS = """
DELETE FROM idempotency_keys k
USING unnest(%(tenant_id)s::uuid[], %(key)s::text[]) AS old (tenant_id, key)
WHERE k.tenant_id = old.tenant_id AND k.key = old.key
    AND k.created_at < now() - make_interval(secs => %(keep_s)s)
"""

_OLD_DELIVERIES = """
SELECT created_at, id, next_attempt_at IS NULL AS is_over FROM webhook_deliveries
WHERE (created_at, id) > (%(created_at)s, %(id)s)
    AND created_at < now() - make_interval(secs => %(keep_s)s)
ORDER BY created_at, id LIMIT %(batch)s
"""
# Those of endpoints that are switched off, or that nobody could send, are over when their day is.
_LATE_DELIVERIES = """
SELECT try_until, id, true AS is_over FROM webhook_deliveries
WHERE (try_until, id) > (%(try_until)s, %(id)s) AND next_attempt_at IS NOT NULL
    AND try_until < now() - make_interval(secs => %(keep_s)s)
ORDER BY try_until, id LIMIT %(batch)s
"""
_GIVE_UP_DELIVERIES = """
UPDATE webhook_deliveries SET next_attempt_at = NULL, given_up_at = now()
WHERE id = ANY(%(id)s) AND next_attempt_at IS NOT NULL
    AND try_until < now() - make_interval(secs => %(keep_s)s)
"""

_MONTHS = """
SELECT right(c.relname, 6) AS month
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = %s::regclass AND c.relname ~ '_p[0-9]{6}$' ORDER BY 1
"""

_DROP_MONTH = "SELECT drop_month(%s, %s, %s) AS is_dropped"

_NOTE_RUN = """
INSERT INTO retention_runs (kind, num_removed, error) VALUES (%(kind)s, %(num)s, %(error)s)
ON CONFLICT (kind) DO UPDATE SET ended_at = now(), num_removed = excluded.num_removed,
    error = excluded.error
"""


@dataclass(frozen=True, slots=True)
class Expired:
    """What became of a batch. `failures`: why each of those that can't be removed can't.

    `after`: behind which the next batch begins; None: there is none.
    """

    num_removed: int
    failures: Sequence[str] = ()
    after: Mark | None = None


class Expiry(Protocol):
    """One kind of what expires."""

    def __call__(
        self, connection: DictConnection, *, batch: int, after: Mark | None = None
    ) -> Expired:
        """Look at so many behind a mark, from the oldest on, and remove what may go."""


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows that `look` finds in the order of the columns of `first`, and says of each whether it
    `is_over`; `remove` gets those columns as arrays.
    """

    look: str
    remove: str
    keep_s: float
    first: Mark = field(default_factory=lambda: _FIRST_ID)

    def __call__(
        self, connection: DictConnection, *, batch: int, after: Mark | None = None
    ) -> Expired:
        parameters = {"keep_s": self.keep_s, "batch": batch, **(after or self.first)}
        rows = connection.execute(self.look.encode(), parameters).fetchall()
        marks = [{column: row[column] for column in self.first} for row in rows]
        over = [mark for mark, row in zip(marks, rows, strict=True) if row["is_over"]]
        failures: list[str] = []
        try:
            num = sum(
                apart(
                    over,
                    lambda some: self._remove(connection, some),
                    lambda _, error: failures.append(reason(error)),
                )
            )
        except Error as error:
            if not is_units(error):
                raise
            num = 0  # they come again once a round, like all that can't go
            failures.append(reason(error))
        return Expired(num, failures, marks[-1] if len(rows) == batch else None)

    def _remove(self, connection: DictConnection, marks: Sequence[Mark]) -> int:
        parameters: dict[str, Any] = {
            column: [mark[column] for mark in marks] for column in self.first
        }
        parameters["keep_s"] = self.keep_s
        return connection.execute(self.remove.encode(), parameters).rowcount


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
    return {
        **{f"months_of_{t}": partial(drop_months, parent=t, keep_s=s) for t, s in months.items()},
        "event_logs": _Rows(
            _OLD_ROWS.format(table="job_results", only="event_log IS NOT NULL"),
            "UPDATE job_results SET event_log = NULL WHERE job_id = ANY(%(id)s)",
            keep.event_logs_h * HOUR_S,
        ),
        **{
            table: _Rows(_OLD_ROWS.format(table=table, only="true"), _delete(table, "job_id"), s)
            for table, s in content_s.items()
        },
        "jobs_outside_months": _Rows(_JOBS_OUTSIDE_MONTHS, _delete("jobs", "id"), jobs_s),
        "outcomes_outside_months": _Rows(
            _OUTCOMES_OUTSIDE_MONTHS, _delete("job_outcomes", "job_id"), outcomes_s
        ),
        "batches": _Rows(_BATCHES, _delete("batches", "id"), keep.batches_d * DAY_S),
        "idempotency_keys": _Rows(
            _IDEMPOTENCY_KEYS,
            _FORGET_KEYS,
            IDEMPOTENCY_TTL_H * HOUR_S,
            {"created_at": "-infinity", "tenant_id": UUID(int=0), "key": ""},
        ),
        "webhook_deliveries": _Rows(
            _OLD_DELIVERIES,
            _delete("webhook_deliveries", "id") + " AND next_attempt_at IS NULL",
            keep.webhook_deliveries_d * DAY_S,
            {"created_at": "-infinity", **_FIRST_ID},
        ),
        "late_webhook_deliveries": _Rows(
            _LATE_DELIVERIES, _GIVE_UP_DELIVERIES, LATE_S, {"try_until": "-infinity", **_FIRST_ID}
        ),
    }


def _delete(table: str, column: str) -> str:
    """An array, not IN: however many the planner expects, each is looked up by its id."""
    return f"DELETE FROM {table} WHERE {column} = ANY(%(id)s)"


def drop_months(
    connection: DictConnection,
    *,
    batch: int,
    parent: str,
    keep_s: float,
    after: Mark | None = None,
) -> Expired:
    """Drop the partitions of a table that are over, one a transaction, `batch` at most. One that
    can't be dropped, or that others are reading, is left for the next run and holds up no other.
    """
    del after  # there are few: all are looked at
    failures: list[str] = []
    pauses = [MONTH_PAUSE_S] * MONTH_PAUSES
    num = 0
    for row in connection.execute(_MONTHS, (parent,)).fetchall():
        try:
            num += _drop_month(connection, (parent, row["month"], keep_s), pauses)
        except Error as error:  # one month's boundary
            if is_outage(error):
                raise
            failures.append(f"{row['month']}: {reason(error)}")
        if num == batch:
            break
    return Expired(num, failures)


def _drop_month(
    connection: DictConnection, month: tuple[str, str, float], pauses: list[float]
) -> bool:
    """False: it is not over."""
    while True:
        try:
            row = connection.execute(_DROP_MONTH, month).fetchone()
        except LockNotAvailable:
            if not pauses:
                raise
            time.sleep(pauses.pop())
        else:
            assert row is not None
            return bool(row["is_dropped"])


def note_run(connection: DictConnection, kind: str, num: int, error: str | None = None) -> None:
    """When a kind was looked after last, and how it went."""
    connection.execute(_NOTE_RUN, {"kind": kind, "num": num, "error": error})


def last_runs(connection: DictConnection) -> list[dict[str, Any]]:
    """`{kind, age_s, num_removed, error}` of each kind."""
    return connection.execute(
        "SELECT kind, extract(epoch FROM now() - ended_at)::float8 AS age_s, num_removed, error"
        " FROM retention_runs ORDER BY kind"
    ).fetchall()


def ensure_partitions(connection: DictConnection, *, months_ahead: int) -> int:
    """Make the partitions of this month and the next ones. Returns how many were missing."""
    row = connection.execute("SELECT ensure_partitions(%s) AS made", (months_ahead,)).fetchone()
    assert row is not None
    return int(row["made"])
