"""A batch as its driver works on it: one lease a batch, and lines that go from pending to over.

A driver may die between any two statements. Lines are submitted under an idempotency key made from
their number, and a line is over in the same transaction that adds its result to a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from store.pools import DictConnection

LEASE_S = 15.0
LEASED_AT_ONCE = 20

# Those that waited longest come first: batches that can't go on (no credit) hold up no others.
_LEASE = f"""
UPDATE batches b SET owner = %(owner)s, leased_until = now() + interval '{LEASE_S} seconds'
FROM (
    SELECT id, owner AS last_owner FROM batches
    WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling')
        AND (owner IS NULL OR owner = %(owner)s OR leased_until < now())
    ORDER BY leased_until NULLS FIRST, id LIMIT {LEASED_AT_ONCE} FOR UPDATE SKIP LOCKED
) due
WHERE b.id = due.id
RETURNING b.*, due.last_owner IS DISTINCT FROM %(owner)s AS is_taken_over,
    expires_at < now() AS is_late, extract(epoch FROM expires_at - now())::float8 AS remaining_s
"""

# What the last driver submitted and died before it could say so. The keys may be forgotten by now.
_TAKE_OVER = """
UPDATE batch_lines l SET state = 'submitted', job_id = j.id
FROM jobs j
WHERE l.batch_id = %(id)s AND l.state = 'pending' AND j.batch_id = %(id)s
    AND j.idempotency_key = %(keys)s || l.number
"""

_OWNED = "id = %(id)s AND owner = %(owner)s"

_ADD_LINES = """
INSERT INTO batch_lines (batch_id, number, custom_id, body, prefix, state, error)
SELECT %(id)s, * FROM unnest(%(numbers)s::int[], %(custom_ids)s::text[], %(bodies)s::bytea[],
    %(prefixes)s::bytea[], %(states)s::text[], %(errors)s::jsonb[])
ON CONFLICT (batch_id, custom_id) DO NOTHING RETURNING number
"""

_PENDING = """
SELECT number, custom_id, body FROM batch_lines
WHERE batch_id = %s AND state = 'pending' ORDER BY prefix, number LIMIT %s
"""

_OVER = """
SELECT l.number, l.custom_id, l.error, p.request, r.output, r.last_seq, j.*
FROM batch_lines l
LEFT JOIN jobs j ON j.id = l.job_id LEFT JOIN job_results r ON r.job_id = l.job_id
LEFT JOIN job_payloads p ON p.job_id = l.job_id
WHERE l.batch_id = %s
    AND (l.state = 'refused' OR l.state = 'submitted' AND j.finished_at IS NOT NULL)
LIMIT %s
"""

_NOTE_OVER = """
WITH lines AS (
    UPDATE batch_lines SET state = 'over', body = NULL, error = NULL
    WHERE batch_id = %(id)s AND number = ANY(%(numbers)s) AND state IN ('refused', 'submitted')
    RETURNING number
)
UPDATE batches SET num_completed = num_completed + %(completed)s,
    num_failed = num_failed + %(failed)s,
    output_file_id = coalesce(output_file_id, %(output_file_id)s),
    error_file_id = coalesce(error_file_id, %(error_file_id)s)
WHERE id = %(id)s AND owner = %(owner)s
    AND (SELECT count(*) FROM lines) = cardinality(%(numbers)s::int[])
"""


def lease(connection: DictConnection, owner: UUID) -> list[dict[str, Any]]:
    """Live batches that this driver may work on for LEASE_S. What a driver before it submitted is
    noted down.
    """
    with connection.transaction():
        batches = connection.execute(_LEASE, {"owner": owner}).fetchall()
        for batch in batches:
            if batch["is_taken_over"] and batch["status"] != "validating":
                parameters = {"id": batch["id"], "keys": _keys(batch["id"])}
                connection.execute(_TAKE_OVER, parameters)
    return batches


def line_key(batch_id: UUID, number: int) -> str:
    """The idempotency key that a line is submitted under."""
    return f"{_keys(batch_id)}{number}"


def _keys(batch_id: UUID) -> str:
    return f"batch:{batch_id.hex}:"


def forget_lines(connection: DictConnection, batch_id: UUID) -> None:
    """When a batch is over; and before its file is read, if a driver died while it read it."""
    connection.execute("DELETE FROM batch_lines WHERE batch_id = %s", (batch_id,))


def add_lines(
    connection: DictConnection, batch_id: UUID, lines: Sequence[dict[str, Any]]
) -> set[int]:
    """Lines `{number, custom_id, body, prefix, error}`. Returns the numbers of those that were
    added; the others' custom_id is taken.
    """
    parameters = {
        "id": batch_id,
        "numbers": [line["number"] for line in lines],
        "custom_ids": [line["custom_id"] for line in lines],
        "bodies": [line["body"] for line in lines],
        "prefixes": [line["prefix"] for line in lines],
        "states": ["refused" if line["error"] else "pending" for line in lines],
        "errors": [Jsonb(line["error"]) if line["error"] else None for line in lines],
    }
    return {row["number"] for row in connection.execute(_ADD_LINES, parameters).fetchall()}


def renew(connection: DictConnection, batch_id: UUID, owner: UUID) -> bool:
    """Go on with a long step. False: the batch is another driver's now."""
    cursor = connection.execute(
        f"UPDATE batches SET leased_until = now() + interval '{LEASE_S} seconds' WHERE {_OWNED}",
        {"id": batch_id, "owner": owner},
    )
    return cursor.rowcount == 1


def begin(connection: DictConnection, batch_id: UUID, owner: UUID, *, num_lines: int) -> None:
    """The file is read: lines may be submitted. A cancel that came meanwhile stands."""
    connection.execute(
        "UPDATE batches SET num_total = %(num)s, in_progress_at = now(), status = CASE"
        " WHEN status = 'validating' THEN 'in_progress' ELSE status END"
        f" WHERE {_OWNED} AND status IN ('validating', 'cancelling')",
        {"id": batch_id, "owner": owner, "num": num_lines},
    )


def fail(
    connection: DictConnection, batch_id: UUID, owner: UUID, errors: Iterable[dict[str, Any]]
) -> None:
    """The file can't be used; nothing of it runs."""
    with connection.transaction():
        forget_lines(connection, batch_id)
        connection.execute(
            "UPDATE batches SET status = 'failed', failed_at = now(), errors = %(errors)s,"
            f" owner = NULL WHERE {_OWNED}",
            {"id": batch_id, "owner": owner, "errors": Jsonb(list(errors))},
        )


def pending_lines(
    connection: DictConnection, batch_id: UUID, *, limit: int
) -> list[dict[str, Any]]:
    """Lines to submit, those that begin alike beside each other."""
    return connection.execute(_PENDING, (batch_id, limit)).fetchall()


def note_submitted(connection: DictConnection, batch_id: UUID, number: int, job_id: UUID) -> None:
    """A line has its job."""
    connection.execute(
        "UPDATE batch_lines SET state = 'submitted', job_id = %s"
        " WHERE batch_id = %s AND number = %s AND state = 'pending'",
        (job_id, batch_id, number),
    )


def note_refused(
    connection: DictConnection, batch_id: UUID, number: int, error: dict[str, Any]
) -> None:
    """A line that no job can be made of."""
    connection.execute(
        "UPDATE batch_lines SET state = 'refused', error = %s"
        " WHERE batch_id = %s AND number = %s AND state = 'pending'",
        (Jsonb(error), batch_id, number),
    )


def refuse_pending(connection: DictConnection, batch_id: UUID, error: dict[str, Any]) -> None:
    """Whatever has no job yet gets none."""
    connection.execute(
        "UPDATE batch_lines SET state = 'refused', error = %s"
        " WHERE batch_id = %s AND state = 'pending'",
        (Jsonb(error), batch_id),
    )


def running_jobs(connection: DictConnection, batch_id: UUID, *, limit: int) -> list[UUID]:
    """Jobs of lines that nobody has asked to cancel yet."""
    rows = connection.execute(
        "SELECT l.job_id FROM batch_lines l JOIN jobs j ON j.id = l.job_id"
        " WHERE l.batch_id = %s AND l.state = 'submitted' AND j.finished_at IS NULL"
        " AND j.cancel_requested_at IS NULL LIMIT %s",
        (batch_id, limit),
    ).fetchall()
    return [row["job_id"] for row in rows]


def counts(connection: DictConnection, batch_id: UUID) -> dict[str, int]:
    """Lines by state, those that are over left out."""
    rows = connection.execute(
        "SELECT state, count(*) AS num FROM batch_lines WHERE batch_id = %s AND state <> 'over'"
        " GROUP BY state",
        (batch_id,),
    ).fetchall()
    return {row["state"]: row["num"] for row in rows}


def lines_to_write(
    connection: DictConnection, batch_id: UUID, *, limit: int
) -> list[dict[str, Any]]:
    """Refused lines, and lines whose jobs are over: the job's row with `output`, `request`."""
    return connection.execute(_OVER, (batch_id, limit)).fetchall()


def note_over(
    connection: DictConnection,
    batch_id: UUID,
    owner: UUID,
    *,
    numbers: Sequence[int],
    num_completed: int,
    num_failed: int,
    output_file_id: UUID | None,
    error_file_id: UUID | None,
) -> bool:
    """Their results stand in the files, by the same transaction. False: another driver's now."""
    cursor = connection.execute(
        _NOTE_OVER,
        {
            "id": batch_id,
            "owner": owner,
            "numbers": list(numbers),
            "completed": num_completed,
            "failed": num_failed,
            "output_file_id": output_file_id,
            "error_file_id": error_file_id,
        },
    )
    return cursor.rowcount == 1


def end(connection: DictConnection, batch_id: UUID, owner: UUID, status: str) -> None:
    """Every line is over, and what is left of it in the files. `status`: completed, expired or
    cancelled.
    """
    cursor = connection.execute(
        # A batch that was cancelled while its file was read has the lines read so far.
        f"UPDATE batches SET status = %(status)s, {status}_at = now(),"
        " num_total = greatest(num_total, num_completed + num_failed),"
        f" finalizing_at = coalesce(finalizing_at, now()), owner = NULL WHERE {_OWNED}",
        {"id": batch_id, "owner": owner, "status": status},
    )
    if cursor.rowcount:
        forget_lines(connection, batch_id)
