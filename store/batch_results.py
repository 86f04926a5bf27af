"""What came of the lines of batches, as drivers read it: one line in memory at a time, and of a
long one a part.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator
from typing import Any
from uuid import UUID

from store.jobs import OUTPUT
from store.logprobs import LOGPROBS, LOGPROBS_A_QUERY, LOGPROBS_A_ROW, logprobs_query
from store.pools import DictConnection, SyncPool

# As stored, compressed. Shown, log-probabilities take some fifty times as much memory.
LONG_BYTES = 256 << 10

_TO_WRITE = """l.batch_id = %(batch_id)s
    AND l.state IN ('refused', 'submitted') AND (l.state = 'refused' OR j.finished_at IS NOT NULL)
    AND (l.try_at IS NULL OR l.try_at <= now())"""

# A long result's log-probabilities are left out, as in store/jobs.py. LIMIT 1 has each row found by
# its key: for a batch of unknown size the planner would rather read whole tables and join them.
# Both states are named for their index's sake, which doesn't hold the lines that are written.
_OVER = f"""
SELECT l.number, l.custom_id, l.error, l.num_tries, p.request, r.last_seq, j.*, size.is_long,
    CASE WHEN size.is_long THEN {OUTPUT} ELSE r.output END AS output
FROM batch_lines l
LEFT JOIN LATERAL (SELECT * FROM jobs WHERE id = l.job_id LIMIT 1) j ON true
LEFT JOIN LATERAL (SELECT * FROM job_results WHERE job_id = l.job_id LIMIT 1) r ON true
LEFT JOIN LATERAL (SELECT * FROM job_payloads WHERE job_id = l.job_id LIMIT 1) p ON true
CROSS JOIN LATERAL (
    SELECT coalesce(pg_column_size(r.output) > %(long_bytes)s, false) AS is_long
) size
WHERE {_TO_WRITE} AND (%(number)s::integer IS NULL OR l.number = %(number)s)
    AND NOT (%(skips_long)s AND size.is_long)
LIMIT %(limit)s
"""

# Whether one is long stands in what can't be read.
_HEADS = f"""
SELECT l.number, l.custom_id, l.num_tries, false AS is_long, l.job_id AS id, j.input_tokens,
    j.cached_tokens, j.output_tokens
FROM batch_lines l
LEFT JOIN LATERAL (SELECT * FROM jobs WHERE id = l.job_id LIMIT 1) j ON true
WHERE {_TO_WRITE} LIMIT %(limit)s
"""


def lines_to_write(
    connection: DictConnection,
    batch_id: UUID,
    *,
    limit: int,
    long_bytes: int = LONG_BYTES,
    number: int | None = None,
    skips_long: bool = False,
) -> Generator[dict[str, Any]]:
    """Refused lines, and lines whose jobs are over, but for those put off: the job's row with
    `output`, `request`, and whether it `is_long`: then where a choice has log-probabilities it says
    `true`.

    One row in memory at a time. Close it if it isn't read to its end. `number`: that line alone.
    """
    parameters = {
        "batch_id": batch_id,
        "limit": limit,
        "long_bytes": long_bytes,
        "number": number,
        "skips_long": skips_long,
    }
    with connection.cursor() as cursor:
        yield from cursor.stream(_OVER, parameters)


def heads_to_write(
    connection: DictConnection, batch_id: UUID, *, limit: int
) -> list[dict[str, Any]]:
    """The same without results: what names them, their tries, their jobs' ids and tokens."""
    return connection.execute(_HEADS, {"batch_id": batch_id, "limit": limit}).fetchall()


def read_logprobs(
    pool: SyncPool, tenant_id: UUID, job_id: UUID, choice: int, *, of_prompt: bool = False
) -> Generator[tuple[str, str]]:
    """Token ids and log-probabilities of a choice, or of its prompt, in the order of the tokens: a
    few hundred at a time, each as the JSON of a list. No connection is held in between.
    """
    parameters = logprobs_query(tenant_id, job_id, choice, of_prompt=of_prompt)
    for begin in itertools.count(0, LOGPROBS_A_QUERY):
        with pool.connection() as connection:
            rows = connection.execute(LOGPROBS, parameters | {"begin": begin}).fetchall()
        for row in rows:
            yield row["token_ids"], row["values"]
        if len(rows) * LOGPROBS_A_ROW < LOGPROBS_A_QUERY:
            return
