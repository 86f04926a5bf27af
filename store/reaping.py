"""Jobs nobody works on any more: their worker is lost, their deadline passed, or somebody cancelled
them between two attempts. Each is requeued or ended, in one statement, by any number of reapers.

Their events end in a range of numbers that no attempt was given: readers may have seen more of an
attempt than its checkpoint holds.

"Produced" is what the job's furthest checkpoint holds: what clients were shown, give or take a
second. A job of which nothing was produced costs its tenant nothing, however it ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, LiteralString
from uuid import UUID

from psycopg.types.json import Jsonb

from store.pools import DictConnection
from tasks import jobs
from tasks.errors import DeadlineExceeded, WorkerLost
from tasks.jobs import Ending
from tasks.stream import SEQUENCE_JUMP

# A job's first loss costs it no time; from the second on it waits 2, 4, 8, .. 60 s, since it may be
# what kills its workers.
FIRST_RETRY_DELAY_S = 2.0
MAX_RETRY_DELAY_S = 60.0

# Jobs a statement, so that none takes long.
MAX_JOBS = 200

DEAD_LEASE_TTL_S = 86_400.0  # kept a day for whoever asks which worker that was

_DEAD_LEASES = """
SELECT worker_id FROM worker_leases
WHERE expires_at < now() - make_interval(secs => %s) AND worker_id <> ALL(%s::uuid[])
"""

# Which of those that are found: all but the ones set aside, or these alone.
_OTHERS: LiteralString = "j.id <> ALL(%(ids)s::uuid[])"
_THESE: LiteralString = "j.id = ANY(%(ids)s::uuid[])"


def _lost(which: LiteralString) -> LiteralString:
    return f"""
WITH found AS MATERIALIZED (
    SELECT j.* FROM jobs j
    WHERE j.status = 'in_progress' AND NOT EXISTS (
        SELECT FROM worker_leases w WHERE w.worker_id = j.worker_id AND w.expires_at > now())
        AND {which}
    ORDER BY j.id LIMIT %(limit)s FOR UPDATE OF j SKIP LOCKED
)"""


_JUDGE_LOST: LiteralString = """
, lost AS (
    UPDATE job_attempts a SET ended_at = now(), outcome = 'lost'
    FROM found f WHERE a.job_id = f.id AND a.attempt = f.attempt
), judged AS (
    SELECT f.*, 1 AS fails, CASE
        WHEN f.cancel_requested_at IS NOT NULL THEN 'cancelled_by_' || coalesce(f.cancel_by, 'user')
        WHEN f.deadline_at <= now() THEN 'deadline'
        WHEN f.fail_count + 1 >= f.max_fails THEN 'worker_lost'
        ELSE 'requeue' END AS verdict
    FROM found f
)"""


# A cancel outranks the deadline here as above: the client asked for it before it was late. Each
# kind is found by an index of its own, however many jobs wait.
def _waiting(which: LiteralString) -> LiteralString:
    return f"""
WITH cancelled AS MATERIALIZED (
    SELECT j.* FROM jobs j
    WHERE j.status = 'queued' AND j.cancel_requested_at IS NOT NULL AND {which}
    ORDER BY j.id LIMIT %(limit)s FOR UPDATE OF j SKIP LOCKED
), late AS MATERIALIZED (
    SELECT j.* FROM jobs j
    WHERE j.status = 'queued' AND j.deadline_at <= now() AND j.cancel_requested_at IS NULL
        AND {which}
    ORDER BY j.deadline_at LIMIT %(limit)s FOR UPDATE OF j SKIP LOCKED
), found AS (
    SELECT * FROM cancelled UNION ALL SELECT * FROM late
)"""


_JUDGE_WAITING: LiteralString = """
, judged AS (
    SELECT f.*, 0 AS fails, CASE WHEN f.cancel_requested_at IS NOT NULL
        THEN 'cancelled_by_' || coalesce(f.cancel_by, 'user') ELSE 'deadline' END AS verdict
    FROM found f
)"""

# What becomes of the judged jobs. Every UPDATE is on rows locked above, so their state is known.
_CARRY_OUT: LiteralString = """
, measured AS MATERIALIZED (
    SELECT d.*, CASE WHEN d.attempt > 0 THEN (d.attempt + 1) * %(jump)s::bigint ELSE 0 END
            AS last_seq, coalesce(c.text, '') AS produced_text,
        coalesce(c.num_tokens, 0) AS produced, c.splits
    FROM judged d LEFT JOIN LATERAL (
        SELECT a.checkpoint_text AS text,
            length(a.checkpoint_token_ids) / 4 AS num_tokens, a.checkpoint_splits AS splits
        FROM job_attempts a WHERE a.job_id = d.id AND NOT %(is_bare)s
        ORDER BY a.checkpoint_seq DESC LIMIT 1
    ) c ON true
), requeued AS (
    UPDATE jobs j SET status = 'queued', worker_id = NULL, hinted_at = NULL,
        fail_count = j.fail_count + 1, reason = 'worker_lost',
        run_after = CASE WHEN j.fail_count = 0 THEN now() ELSE now() + make_interval(
            secs => least(%(first_delay_s)s * 2 ^ (j.fail_count - 1), %(max_delay_s)s)) END
    FROM measured m WHERE j.id = m.id AND m.verdict = 'requeue'
), ending AS (
    SELECT m.*, e.status AS end_status, e.reason AS end_reason, e.error_code AS end_code,
        e.error_message AS end_message, e.retryable AS end_retryable, e.finish_reason,
        CASE WHEN m.produced = 0 AND e.payer = 'tenant' THEN 'nobody' ELSE e.payer END AS end_payer
    FROM measured m JOIN jsonb_to_recordset(%(endings)s) AS e (verdict text, has_output boolean,
        status text, reason text, payer text, error_code text, error_message text,
        retryable boolean, finish_reason text)
        ON e.verdict = m.verdict AND e.has_output = (m.produced > 0)
), priced AS MATERIALIZED (
    SELECT e.*, CASE WHEN e.end_payer = 'tenant' THEN least(r.amount_micros, cost_micros(
        e.input_tokens, coalesce(e.cached_tokens, 0), e.produced, e.input_price, e.cached_price,
        e.output_price)) ELSE 0 END AS cost
    FROM ending e LEFT JOIN reservations r ON r.job_id = e.id
), ended AS (
    UPDATE jobs j SET status = p.end_status, reason = p.end_reason, worker_id = NULL,
        finished_at = now(), fail_count = j.fail_count + p.fails,
        cached_tokens = coalesce(j.cached_tokens, 0), output_tokens = p.produced,
        cost_micros = p.cost, error_code = p.end_code, error_message = p.end_message,
        error_retryable = p.end_retryable
    FROM priced p WHERE j.id = p.id
), results AS (
    INSERT INTO job_results (job_id, tenant_id, output, last_seq)
    SELECT p.id, p.tenant_id, CASE WHEN p.end_status = 'failed' THEN jsonb_build_array() ELSE (
        SELECT jsonb_agg(jsonb_build_object('index', c.index,
            'text', substr(p.produced_text, c.num_chars_before + 1, c.num_chars),
            'finish_reason', coalesce(c.finish_reason, p.finish_reason)) ORDER BY c.index)
        FROM (
            SELECT i AS index, coalesce((split->>1)::int, 0) AS num_chars,
                coalesce(sum((split->>1)::int) OVER (ORDER BY i ROWS BETWEEN UNBOUNDED PRECEDING
                    AND 1 PRECEDING), 0)::int AS num_chars_before, split->>2 AS finish_reason
            FROM generate_series(0, p.num_choices - 1) AS i
            LEFT JOIN jsonb_array_elements(coalesce(p.splits, jsonb_build_array(
                    jsonb_build_array(p.produced, length(p.produced_text)))))
                WITH ORDINALITY AS splits (split, position) ON position = i + 1
        ) c) END, p.last_seq
    FROM priced p ON CONFLICT DO NOTHING
), outcomes AS (
    INSERT INTO job_outcomes (job_id, tenant_id, api_key_id, model, service_tier, status, reason,
        payer, attempt, input_tokens, cached_tokens, output_tokens, price_version, input_price,
        cached_price, output_price, currency, end_user)
    SELECT id, tenant_id, api_key_id, model, service_tier, end_status, end_reason, end_payer,
        attempt, input_tokens, coalesce(cached_tokens, 0), produced, price_version, input_price,
        cached_price, output_price, currency, end_user
    FROM priced ON CONFLICT DO NOTHING
)
SELECT m.id AS job_id, m.attempt, m.verdict, p.end_status AS status
FROM measured m LEFT JOIN priced p ON p.id = m.id
"""


@dataclass(frozen=True, slots=True)
class Reaped:
    """What became of one job: `status` is None if it was requeued."""

    job_id: UUID
    attempt: int
    verdict: str
    status: str | None


@dataclass(frozen=True, slots=True)
class Sort:
    """Jobs that are found one way. Any number may reap them: what another holds is skipped."""

    name: str
    _find: Callable[[LiteralString], LiteralString]
    _judge: LiteralString

    def reap(
        self, connection: DictConnection, *, aside: Sequence[UUID] = (), limit: int = MAX_JOBS
    ) -> list[Reaped]:
        """Requeue or end them, but for those set aside."""
        return self._reap(connection, _OTHERS, aside, limit=limit)

    def waiting(
        self, connection: DictConnection, *, aside: Sequence[UUID] = (), limit: int = MAX_JOBS
    ) -> list[UUID]:
        """What `reap` would find."""
        rows = connection.execute(
            self._find(_OTHERS) + " SELECT id FROM found", {"ids": list(aside), "limit": limit}
        ).fetchall()
        return [row["id"] for row in rows]

    def reap_these(
        self, connection: DictConnection, ids: Sequence[UUID], *, is_bare: bool = False
    ) -> list[Reaped]:
        """Those of them that still are to be reaped; `is_bare`: as if nothing had been produced."""
        return self._reap(connection, _THESE, ids, limit=len(ids), is_bare=is_bare)

    def _reap(
        self,
        connection: DictConnection,
        which: LiteralString,
        ids: Sequence[UUID],
        *,
        limit: int,
        is_bare: bool = False,
    ) -> list[Reaped]:
        parameters = {"ids": list(ids), "limit": limit, "is_bare": is_bare, **_PARAMETERS}
        rows = connection.execute(self._find(which) + self._judge + _CARRY_OUT, parameters)
        return [Reaped(**row) for row in rows.fetchall()]


LOST = Sort("in_progress", _lost, _JUDGE_LOST)
WAITING = Sort("queued", _waiting, _JUDGE_WAITING)


def reap_lost(connection: DictConnection, *, limit: int = MAX_JOBS) -> list[Reaped]:
    """Requeue or end running jobs whose worker's lease is over."""
    return LOST.reap(connection, limit=limit)


def reap_waiting(connection: DictConnection, *, limit: int = MAX_JOBS) -> list[Reaped]:
    """End queued jobs that are past their deadline or were cancelled between two attempts."""
    return WAITING.reap(connection, limit=limit)


def jobs_that_need_clients(connection: DictConnection, *, limit: int) -> list[UUID]:
    """Running jobs that are to end when nobody waits for them any more, the oldest first."""
    rows = connection.execute(
        "SELECT id FROM jobs WHERE status = 'in_progress' AND on_disconnect = 'cancel'"
        " AND cancel_requested_at IS NULL ORDER BY id LIMIT %s",
        (limit,),
    ).fetchall()
    return [row["id"] for row in rows]


def dead_leases(connection: DictConnection, *, aside: Sequence[UUID] = ()) -> list[UUID]:
    """Workers that have been dead for a day, but for those set aside."""
    rows = connection.execute(_DEAD_LEASES, (DEAD_LEASE_TTL_S, list(aside))).fetchall()
    return [row["worker_id"] for row in rows]


def forget_leases(connection: DictConnection, worker_ids: Sequence[UUID]) -> int:
    """Nobody asks about these workers any more. Returns how many were forgotten."""
    return connection.execute(
        "DELETE FROM worker_leases WHERE worker_id = ANY(%s) AND expires_at < now()",
        (list(worker_ids),),
    ).rowcount


def _row(verdict: str, has_output: bool, ending: Ending, message: str | None) -> dict[str, Any]:
    is_failed = ending.status == jobs.JobStatus.FAILED
    return {
        "verdict": verdict,
        "has_output": has_output,
        "status": ending.status.value,
        "reason": ending.reason,
        "payer": ending.payer.value,
        "error_code": ending.reason if is_failed else None,
        "error_message": message,
        "retryable": ending.is_retryable if is_failed else None,
        "finish_reason": "length" if ending.status == jobs.JobStatus.INCOMPLETE else None,
    }


def _endings() -> Sequence[dict[str, Any]]:
    late, lost = DeadlineExceeded().message, WorkerLost().message
    return [
        _row("deadline", True, jobs.DEADLINE_AFTER_START, None),
        _row("deadline", False, jobs.DEADLINE_BEFORE_START, late),
        *(_row("worker_lost", has, jobs.WORKER_LOST, lost) for has in (True, False)),
        *(
            _row(f"cancelled_by_{who}", has, jobs.cancelled_by(who), None)
            for who in ("user", "operator")
            for has in (True, False)
        ),
    ]


_PARAMETERS: Mapping[str, Any] = {
    "endings": Jsonb(_endings()),
    "first_delay_s": FIRST_RETRY_DELAY_S,
    "max_delay_s": MAX_RETRY_DELAY_S,
    "jump": SEQUENCE_JUMP,
}
