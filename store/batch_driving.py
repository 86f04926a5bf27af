"""The lines of a batch as its driver works on them: from the file to pending, submitted, over.

A driver may die between any two statements. A line is submitted by the statement that makes its job
(a trigger of `jobs`), under an idempotency key made from its number, and it is over in the
transaction that adds its result to a file. All that drivers write is fenced by the lease's owner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from store.batch_turns import OWNED, BatchRow
from store.file_output import limit_outputs
from store.files import BATCH_TTL_S
from store.pools import DictConnection

FORGET_AT_ONCE = 2_000  # lines: what is deleted or refused by one statement stays a short one

# What a driver of the release before submitted and died before it could say so.
_TAKE_OVER = """
UPDATE batch_lines l SET state = 'submitted', job_id = j.id, num_tries = 0, try_at = NULL
FROM jobs j
WHERE l.batch_id = %(id)s AND l.state = 'pending' AND j.batch_id = %(id)s
    AND j.deleted_at IS NULL AND j.idempotency_key = %(keys)s || l.number
"""

# It also wrote lines without counting their tokens.
_RECOUNT = """
UPDATE batches SET input_tokens = u.input_tokens, cached_tokens = u.cached_tokens,
    output_tokens = u.output_tokens
FROM (
    SELECT coalesce(sum(j.input_tokens), 0) AS input_tokens,
        coalesce(sum(j.cached_tokens), 0) AS cached_tokens,
        coalesce(sum(j.output_tokens), 0) AS output_tokens
    FROM batch_lines l JOIN jobs j ON j.id = l.job_id
    WHERE l.batch_id = %(id)s AND l.state = 'over'
) u
WHERE id = %(id)s AND owner = %(owner)s
"""

# It may have begun to read the file anew.
_BEGIN_ANEW = """
UPDATE batches SET read_bytes = 0, read_lines = 0, num_total = 0, errors = '[]'
WHERE id = %(id)s AND owner = %(owner)s AND status = 'validating'
    AND num_total <> (SELECT count(*) FROM batch_lines WHERE batch_id = %(id)s)
"""

_FORGET = f"""
DELETE FROM batch_lines WHERE batch_id = %(id)s AND number IN (
    SELECT number FROM batch_lines WHERE batch_id = %(id)s LIMIT {FORGET_AT_ONCE}
)
"""

# The row is locked before lines are added: of two drivers the one that was overtaken adds none.
_OWN = f"SELECT FROM batches WHERE {OWNED} FOR UPDATE"

_ADVANCE = f"""
UPDATE batches SET read_bytes = %(read_bytes)s, read_lines = %(read_lines)s,
    num_total = num_total + %(num_added)s, errors = %(errors)s
WHERE {OWNED}
"""

_ADD_LINES = """
INSERT INTO batch_lines (batch_id, number, custom_id, body, prefix)
SELECT %(id)s, * FROM unnest(%(numbers)s::int[], %(custom_ids)s::text[], %(bodies)s::bytea[],
    %(prefixes)s::bytea[])
ON CONFLICT (batch_id, custom_id) DO NOTHING RETURNING number
"""

_PENDING = """
SELECT number, custom_id, body, num_tries FROM (
    SELECT number, custom_id, body, num_tries,
        sum(octet_length(body)) OVER (ORDER BY prefix, number) - octet_length(body) AS before
    FROM batch_lines
    WHERE batch_id = %(id)s AND state = 'pending' AND (try_at IS NULL OR try_at <= now())
    ORDER BY prefix, number LIMIT %(limit)s
) lines WHERE before < %(max_bytes)s
"""

_REFUSE_PENDING = f"""
UPDATE batch_lines SET state = 'refused', error = %(error)s, body = NULL,
    num_tries = 0, try_at = NULL
WHERE batch_id = %(id)s AND state = 'pending' AND number IN (
    SELECT number FROM batch_lines WHERE batch_id = %(id)s AND state = 'pending'
    LIMIT {FORGET_AT_ONCE}
)
"""

_POSTPONE = """
UPDATE batch_lines SET num_tries = num_tries + 1,
    try_at = now() + make_interval(secs => %(pause_s)s)
WHERE batch_id = %(id)s AND number = %(number)s AND state = ANY(%(states)s)
"""

_NOTE_OVER = """
WITH lines AS (
    UPDATE batch_lines SET state = 'over', body = NULL, error = NULL
    WHERE batch_id = %(id)s AND number = ANY(%(numbers)s) AND state IN ('refused', 'submitted')
    RETURNING number
)
UPDATE batches SET num_completed = num_completed + %(completed)s,
    num_failed = num_failed + %(failed)s,
    input_tokens = input_tokens + %(input_tokens)s,
    cached_tokens = cached_tokens + %(cached_tokens)s,
    output_tokens = output_tokens + %(output_tokens)s,
    output_file_id = coalesce(output_file_id, %(output_file_id)s),
    error_file_id = coalesce(error_file_id, %(error_file_id)s)
WHERE id = %(id)s AND owner = %(owner)s
    AND (SELECT count(*) FROM lines) = cardinality(%(numbers)s::int[])
"""

_LEFT = """
SELECT count(*) FILTER (WHERE state = 'submitted') AS num_submitted,
    count(*) FILTER (WHERE state = 'submitted' AND num_tries > 0) AS num_put_off,
    count(*) FILTER (WHERE state = 'refused') AS num_refused,
    EXISTS (SELECT FROM batch_lines WHERE batch_id = %(id)s AND state = 'pending') AS has_pending
FROM batch_lines WHERE batch_id = %(id)s AND state IN ('submitted', 'refused')
"""


@dataclass(frozen=True, slots=True)
class Left:
    """What is not over of a batch."""

    num_submitted: int
    num_refused: int
    has_pending: bool
    num_put_off: int = 0  # of those submitted: their results couldn't be written at the moment

    @property
    def is_nothing(self) -> bool:
        """Whether every line is over."""
        return not (self.num_submitted or self.num_refused or self.has_pending)


@dataclass(frozen=True, slots=True)
class ReadLines:
    """A slice of a file: its lines `{number, custom_id, body, prefix}` and where it ends."""

    lines: Sequence[dict[str, Any]]
    read_bytes: int
    read_lines: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenLines:
    """Lines whose results stand in the files once the transaction commits."""

    numbers: Sequence[int]
    num_completed: int
    num_failed: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    output_file_id: UUID | None
    error_file_id: UUID | None


def take_over(connection: DictConnection, batch: BatchRow) -> None:
    """After a step that never ended: what its driver did without saying so is noted down."""
    parameters = {"id": batch["id"], "owner": batch["owner"], "keys": _keys(batch["id"])}
    if batch["status"] == "validating":
        connection.execute(_BEGIN_ANEW, parameters)
        return
    connection.execute(_TAKE_OVER, parameters)
    connection.execute(_RECOUNT, parameters)


def line_key(batch_id: UUID, number: int) -> str:
    """The idempotency key that a line is submitted under. It ends with the line's number."""
    return f"{_keys(batch_id)}{number}"


def _keys(batch_id: UUID) -> str:
    return f"batch:{batch_id.hex}:"


def forget_lines(connection: DictConnection, batch_id: UUID) -> int:
    """Some lines of a batch that is over or begins anew; how many. Repeat until there are none."""
    return connection.execute(_FORGET, {"id": batch_id}).rowcount


def is_owned(connection: DictConnection, batch: BatchRow) -> bool:
    """Whether the lease holds, until the end of the transaction. False: another driver's now."""
    return connection.execute(_OWN, {"id": batch["id"], "owner": batch["owner"]}).rowcount == 1


def add_lines(
    connection: DictConnection, batch_id: UUID, lines: Sequence[dict[str, Any]]
) -> set[int]:
    """The numbers of those that were added; the others' custom_id is taken."""
    parameters = {
        "id": batch_id,
        "numbers": [line["number"] for line in lines],
        "custom_ids": [line["custom_id"] for line in lines],
        "bodies": [line["body"] for line in lines],
        "prefixes": [line["prefix"] for line in lines],
    }
    return {row["number"] for row in connection.execute(_ADD_LINES, parameters).fetchall()}


def advance(
    connection: DictConnection,
    batch: BatchRow,
    read: ReadLines,
    *,
    num_added: int,
    mistakes: Sequence[dict[str, Any]],
) -> None:
    """The file is read so far, by the transaction that adds the lines."""
    connection.execute(
        _ADVANCE,
        {
            "id": batch["id"],
            "owner": batch["owner"],
            "read_bytes": read.read_bytes,
            "read_lines": read.read_lines,
            "num_added": num_added,
            "errors": Jsonb(list(mistakes)),
        },
    )


def begin(connection: DictConnection, batch: BatchRow) -> None:
    """The file is read: lines may be submitted. A cancel that came meanwhile stands."""
    connection.execute(
        "UPDATE batches SET in_progress_at = now(), status = CASE"
        " WHEN status = 'validating' THEN 'in_progress' ELSE status END"
        f" WHERE {OWNED} AND status IN ('validating', 'cancelling')",
        {"id": batch["id"], "owner": batch["owner"]},
    )


def fail(connection: DictConnection, batch: BatchRow, errors: Sequence[dict[str, Any]]) -> None:
    """Nothing of it runs any more."""
    with connection.transaction():
        _limit_files(connection, batch)
        connection.execute(
            "UPDATE batches SET status = 'failed', failed_at = now(), errors = %(errors)s,"
            " num_total = CASE WHEN status = 'validating' THEN 0 ELSE num_total END,"
            f" waits_for = NULL, owner = NULL, leased_until = NULL WHERE {OWNED}",
            {"id": batch["id"], "owner": batch["owner"], "errors": Jsonb(list(errors))},
        )


def pending_lines(
    connection: DictConnection, batch_id: UUID, *, limit: int, max_bytes: int
) -> list[dict[str, Any]]:
    """Lines to submit, those that begin alike beside each other: so many bytes and a line."""
    parameters = {"id": batch_id, "limit": limit, "max_bytes": max_bytes}
    return connection.execute(_PENDING, parameters).fetchall()


def note_submitted(connection: DictConnection, batch_id: UUID, number: int, job_id: UUID) -> None:
    """A line has a job that was there already."""
    connection.execute(
        "UPDATE batch_lines SET state = 'submitted', job_id = %s, num_tries = 0, try_at = NULL"
        " WHERE batch_id = %s AND number = %s AND state = 'pending'",
        (job_id, batch_id, number),
    )


def note_refused(
    connection: DictConnection, batch_id: UUID, number: int, error: dict[str, Any]
) -> None:
    """A line that no job can be made of."""
    connection.execute(
        "UPDATE batch_lines SET state = 'refused', error = %s, body = NULL,"
        " num_tries = 0, try_at = NULL"
        " WHERE batch_id = %s AND number = %s AND state = 'pending'",
        (Jsonb(error), batch_id, number),
    )


def postpone_line(
    connection: DictConnection, batch_id: UUID, number: int, *, pause_s: float
) -> None:
    """It failed by no fault that has a name; try it again later."""
    _postpone(connection, batch_id, number, pause_s, ["pending"])


def postpone_result(
    connection: DictConnection, batch_id: UUID, number: int, *, pause_s: float
) -> None:
    """What came of a line couldn't be written at the moment; try it again later."""
    _postpone(connection, batch_id, number, pause_s, ["submitted", "refused"])


def _postpone(
    connection: DictConnection, batch_id: UUID, number: int, pause_s: float, states: list[str]
) -> None:
    connection.execute(
        _POSTPONE, {"id": batch_id, "number": number, "pause_s": pause_s, "states": states}
    )


def refuse_pending(connection: DictConnection, batch_id: UUID, error: dict[str, Any]) -> int:
    """Some of the lines without a job get none; how many. Repeat it until there are none."""
    return connection.execute(_REFUSE_PENDING, {"id": batch_id, "error": Jsonb(error)}).rowcount


def running_jobs(connection: DictConnection, batch_id: UUID, *, limit: int) -> list[UUID]:
    """Jobs of lines that nobody has asked to cancel yet."""
    rows = connection.execute(
        "SELECT l.job_id FROM batch_lines l"
        " CROSS JOIN LATERAL (SELECT * FROM jobs WHERE id = l.job_id LIMIT 1) j"
        " WHERE l.batch_id = %s AND l.state = 'submitted' AND j.finished_at IS NULL"
        " AND j.cancel_requested_at IS NULL LIMIT %s",
        (batch_id, limit),
    ).fetchall()
    return [row["job_id"] for row in rows]


def left(connection: DictConnection, batch_id: UUID) -> Left:
    """What is still to be done."""
    row = connection.execute(_LEFT, {"id": batch_id}).fetchone()
    assert row is not None
    return Left(**row)


def note_over(connection: DictConnection, batch: BatchRow, written: WrittenLines) -> bool:
    """Their results stand in the files, by the same transaction. False: another driver's now."""
    cursor = connection.execute(
        _NOTE_OVER,
        {
            "id": batch["id"],
            "owner": batch["owner"],
            "numbers": list(written.numbers),
            "completed": written.num_completed,
            "failed": written.num_failed,
            "input_tokens": written.input_tokens,
            "cached_tokens": written.cached_tokens,
            "output_tokens": written.output_tokens,
            "output_file_id": written.output_file_id,
            "error_file_id": written.error_file_id,
        },
    )
    return cursor.rowcount == 1


def end(connection: DictConnection, batch: BatchRow, status: str) -> None:
    """Every line is over and its result in the files. `status`: completed, expired or cancelled."""
    with connection.transaction():
        _limit_files(connection, batch)
        connection.execute(
            # A batch that was cancelled while its file was read has the lines read so far.
            f"UPDATE batches SET status = %(status)s, {status}_at = now(), waits_for = NULL,"
            " num_total = greatest(num_total, num_completed + num_failed),"
            " finalizing_at = coalesce(finalizing_at, now()), owner = NULL, leased_until = NULL"
            f" WHERE {OWNED}",
            {"id": batch["id"], "owner": batch["owner"], "status": status},
        )


def _limit_files(connection: DictConnection, batch: BatchRow) -> None:
    ids = (batch["output_file_id"], batch["error_file_id"])
    ttl_s = batch["output_ttl_s"] or BATCH_TTL_S
    limit_outputs(connection, batch["tenant_id"], ids, ttl_s=ttl_s)
