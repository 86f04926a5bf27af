"""An attempt at a job: checkpoint, finish, requeue; `store.claiming` begins it.

`attempt` is the fencing token. Every write after the claim names job, attempt and worker, and does
nothing when the job has moved on; the caller hears of it and discards its work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from psycopg.types.json import Jsonb

from store.admission import FrozenPrices
from store.pools import DictConnection
from tasks.jobs import Ending

AttemptOutcome = Literal["ok", "error", "cancelled", "drained"]

_CHECKPOINT = """
UPDATE job_attempts a SET checkpoint_seq = v.seq, checkpoint_token_ids = v.token_ids,
    checkpoint_text = v.text, checkpoint_splits = v.splits, output_tokens = v.output_tokens
FROM unnest(%(job_ids)s::uuid[], %(attempts)s::int[], %(seqs)s::bigint[], %(token_ids)s::bytea[],
    %(texts)s::text[], %(splits)s::jsonb[], %(output_tokens)s::int[])
    AS v (job_id, attempt, seq, token_ids, text, splits, output_tokens)
WHERE a.job_id = v.job_id AND a.attempt = v.attempt AND a.ended_at IS NULL
"""

_FINISH = """
WITH job AS (
    UPDATE jobs SET status = %(status)s, reason = %(reason)s, worker_id = NULL, finished_at = now(),
        cached_tokens = %(cached_tokens)s, output_tokens = %(output_tokens)s,
        cost_micros = %(cost_micros)s, error_code = %(error_code)s,
        error_message = %(error_message)s, error_retryable = %(error_retryable)s
    WHERE id = %(job_id)s AND status = 'in_progress' AND attempt = %(attempt)s
        AND worker_id = %(worker_id)s
    RETURNING *
), attempt AS (
    UPDATE job_attempts a SET ended_at = now(), outcome = %(attempt_outcome)s,
        output_tokens = %(attempt_tokens)s
    FROM job WHERE a.job_id = job.id AND a.attempt = job.attempt
), result AS (
    INSERT INTO job_results (job_id, tenant_id, output, last_seq, event_log)
    SELECT id, tenant_id, %(output)s, %(last_seq)s, %(event_log)s FROM job
), outcome AS (
    INSERT INTO job_outcomes (job_id, tenant_id, api_key_id, model, service_tier, status, reason,
        payer, attempt, input_tokens, cached_tokens, output_tokens, price_version, input_price,
        cached_price, output_price, currency, end_user)
    SELECT id, tenant_id, api_key_id, model, service_tier, status, reason, %(payer)s, attempt,
        input_tokens, cached_tokens, output_tokens, price_version, input_price, cached_price,
        output_price, currency, end_user
    FROM job
)
SELECT id FROM job
"""

# Tells a finish whose COMMIT got no answer from one that was refused.
_FINISHED_BY = """
SELECT EXISTS (
    SELECT FROM jobs j JOIN job_attempts a ON a.job_id = j.id AND a.attempt = j.attempt
    WHERE j.id = %(job_id)s AND j.attempt = %(attempt)s AND j.finished_at IS NOT NULL
        AND a.worker_id = %(worker_id)s AND a.outcome <> 'lost'
) AS mine
"""

_REQUEUE = """
WITH job AS (
    UPDATE jobs SET status = 'queued', worker_id = NULL, hinted_at = NULL, reason = %(reason)s,
        run_after = now() + make_interval(secs => %(delay_s)s), fail_count = fail_count + %(fails)s
    WHERE id = %(job_id)s AND status = 'in_progress' AND attempt = %(attempt)s
        AND worker_id = %(worker_id)s
    RETURNING id, attempt
), attempt AS (
    UPDATE job_attempts a SET ended_at = now(), outcome = %(attempt_outcome)s,
        checkpoint_seq = %(seq)s, checkpoint_token_ids = %(token_ids)s, checkpoint_text = %(text)s,
        checkpoint_splits = %(splits)s, output_tokens = %(attempt_tokens)s
    FROM job WHERE a.job_id = job.id AND a.attempt = job.attempt
)
SELECT id FROM job
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A job this process now holds, with all it takes to run it."""

    job_id: UUID
    tenant_id: UUID
    attempt: int
    fail_count: int
    max_fails: int
    model: str
    service_tier: str
    input_tokens: int
    max_output_tokens: int
    prices: FrozenPrices
    remaining_s: float
    prompt_token_ids: bytes
    sampling: Mapping[str, Any]
    checkpoint: Checkpoint
    grammar: str | None = None  # serialised; every attempt compiles the same
    num_choices: int = 1


# One choice's share of a checkpoint: its tokens, its characters, and its finish_reason on the wire,
# None while it goes on.
Split = tuple[int, int, str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """How far a job has come: the last event, and the output of all attempts up to it.

    Tokens and texts of several choices stand one after another, in the order of their indexes.
    """

    seq: int = 0
    token_ids: bytes = b""  # little-endian uint32
    text: str = ""
    splits: tuple[Split, ...] | None = None  # one for each choice; None: there is one choice


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningCheckpoint:
    """A checkpoint to write for a running attempt."""

    job_id: UUID
    attempt: int
    checkpoint: Checkpoint
    output_tokens: int  # produced by this attempt alone


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """The end of a job by the worker that holds it."""

    job_id: UUID
    attempt: int
    worker_id: UUID
    ending: Ending
    attempt_outcome: AttemptOutcome
    cached_tokens: int
    output_tokens: int
    attempt_tokens: int
    cost_micros: int
    output: Sequence[Mapping[str, Any]]
    last_seq: int
    event_log: bytes | None
    error_code: str | None = None  # finer than the ending's reason
    error_message: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Requeue:
    """Give a job back. `counts_as_failure` is False for a drain."""

    job_id: UUID
    attempt: int
    worker_id: UUID
    reason: str
    delay_s: float
    counts_as_failure: bool
    checkpoint: Checkpoint
    attempt_tokens: int


def save_checkpoints(connection: DictConnection, running: Sequence[RunningCheckpoint]) -> None:
    """One statement for all running jobs. Attempts that have ended are left alone."""
    if not running:
        return
    connection.execute(
        _CHECKPOINT,
        {
            "job_ids": [item.job_id for item in running],
            "attempts": [item.attempt for item in running],
            "seqs": [item.checkpoint.seq for item in running],
            "token_ids": [item.checkpoint.token_ids for item in running],
            "texts": [item.checkpoint.text for item in running],
            "splits": [_splits(item.checkpoint) for item in running],
            "output_tokens": [item.output_tokens for item in running],
        },
    )


def finish(connection: DictConnection, end: Finish) -> bool:
    """Terminal state, result and outcome in one statement. False: fenced, discard the work.

    Safe to repeat after a lost connection: a finish that did commit counts as done.
    """
    is_failed = end.ending.status == "failed"
    row = connection.execute(
        _FINISH,
        {
            **_fence(end),
            "status": end.ending.status.value,
            "reason": end.ending.reason,
            "payer": end.ending.payer.value,
            "attempt_outcome": end.attempt_outcome,
            "attempt_tokens": end.attempt_tokens,
            "cached_tokens": end.cached_tokens,
            "output_tokens": end.output_tokens,
            "cost_micros": end.cost_micros,
            "output": Jsonb(list(end.output)),
            "last_seq": end.last_seq,
            "event_log": end.event_log,
            "error_code": (end.error_code or end.ending.reason) if is_failed else None,
            "error_message": end.error_message,
            "error_retryable": end.ending.is_retryable if is_failed else None,
        },
    ).fetchone()
    return row is not None or _was_finished_by(connection, end)


def requeue(connection: DictConnection, back: Requeue) -> bool:
    """Back into the queue, with a checkpoint to go on from. False: fenced."""
    row = connection.execute(
        _REQUEUE,
        {
            **_fence(back),
            "reason": back.reason,
            "delay_s": back.delay_s,
            "fails": int(back.counts_as_failure),
            "attempt_outcome": "error" if back.counts_as_failure else "drained",
            "attempt_tokens": back.attempt_tokens,
            "seq": back.checkpoint.seq,
            "token_ids": back.checkpoint.token_ids,
            "text": back.checkpoint.text,
            "splits": _splits(back.checkpoint),
        },
    ).fetchone()
    return row is not None


def cancel_asked_by(connection: DictConnection, job_id: UUID) -> str | None:
    """Who asked to cancel a job: `user` or `operator`; None if nobody did."""
    row = connection.execute(
        "SELECT cancel_by FROM jobs WHERE id = %s AND cancel_requested_at IS NOT NULL", (job_id,)
    ).fetchone()
    return row["cancel_by"] if row else None


def ask_cancel(connection: DictConnection, job_id: UUID, *, by: str) -> None:
    """Note that a job is to be cancelled; its worker or the reaper will end it. Idempotent."""
    connection.execute(
        "UPDATE jobs SET cancel_requested_at = now(), cancel_by = %s"
        " WHERE id = %s AND cancel_requested_at IS NULL AND finished_at IS NULL",
        (by, job_id),
    )


def _fence(write: Finish | Requeue) -> dict[str, Any]:
    return {"job_id": write.job_id, "attempt": write.attempt, "worker_id": write.worker_id}


def _was_finished_by(connection: DictConnection, end: Finish) -> bool:
    row = connection.execute(_FINISHED_BY, _fence(end)).fetchone()
    return bool(row and row["mine"])


def _splits(checkpoint: Checkpoint) -> Jsonb | None:
    return None if checkpoint.splits is None else Jsonb(checkpoint.splits)
