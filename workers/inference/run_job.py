"""One attempt from claim to commit: open the stream, generate, finish or give back.

Runs on a handler thread, which waits while the engine's thread works. Every stage has a bound.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar
from uuid import UUID

import psycopg
import structlog

from billing.pricing import cost_micros
from store import attempts
from store.attempts import Claimed, Finish, Requeue
from store.pools import DictConnection
from tasks.billing import enqueue_settle
from tasks.errors import DeadlineExceeded
from tasks.jobs import (
    COMPLETED,
    DEADLINE_AFTER_START,
    DEADLINE_BEFORE_START,
    ENGINE_ERROR,
    MAX_OUTPUT_TOKENS,
    Ending,
    JobStatus,
    Payer,
    cancelled_by,
)
from tasks.stream import StreamWriter
from tasks.token_ids import unpack_token_ids
from workers.inference import metrics
from workers.inference.engine.errors import EngineError
from workers.inference.engine.protocol import (
    EngineRequest,
    FinishReason,
    SamplingParams,
    TokenOutput,
)
from workers.inference.errors import to_service_error
from workers.inference.job_stream import JobStream
from workers.inference.resume import StreamTaken, open_stream
from workers.inference.runtime import RunningJob, Runtime

log = structlog.get_logger(__name__)
T = TypeVar("T")

# The engine ends a request at its deadline; this much later the handler stops trusting it.
DEADLINE_GRACE_S = 15.0
# A commit is tried this long; by then the lease is over and the reaper has the job.
COMMIT_PATIENCE_S = 30.0
COMMIT_RETRY_S = 0.25
ERROR_BACKOFF_S = 1.0  # before the next attempt after an engine error, doubled a failure

_ENDINGS = {
    FinishReason.STOP: COMPLETED,
    FinishReason.LENGTH: MAX_OUTPUT_TOKENS,
    FinishReason.DEADLINE: DEADLINE_AFTER_START,
}
# OpenAI's closed list of finish reasons; a cancelled choice has none.
_WIRE_REASONS = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.DEADLINE: "length",
}
_OUTCOMES: dict[FinishReason, attempts.AttemptOutcome] = {
    FinishReason.ERROR: "error",
    FinishReason.ABORT: "cancelled",
}


def run_job(runtime: Runtime, writer: StreamWriter, claimed: Claimed, worker_id: UUID) -> None:
    """Run an attempt this process has claimed. Raises only on programming errors."""
    structlog.contextvars.bind_contextvars(
        job_id=claimed.job_id.hex, attempt=claimed.attempt, tenant_id=claimed.tenant_id.hex
    )
    try:
        with metrics.STAGE_SECONDS.labels("open_stream").time():
            stream = open_stream(writer, claimed)
    except StreamTaken:
        log.warning("stream_taken")
        return
    job = RunningJob(stream, worker_id)
    runtime.add(job)
    try:
        _generate_or_fail(runtime, job)
        job.is_concluding = True
        if job.stream.is_fenced:
            _count_attempt(claimed, "fenced")
            log.warning("attempt_fenced")
        else:
            _conclude(runtime, job)
    finally:
        runtime.remove(job)
        runtime.publisher.forget(job.request_id)
        structlog.contextvars.clear_contextvars()


def _generate_or_fail(runtime: Runtime, job: RunningJob) -> None:
    """A fault of ours counts as one of the engine: another attempt, at last a failed job."""
    try:
        _generate(runtime, job)
    except Exception:  # the job's boundary: raising would leave it held by nobody
        log.exception("attempt_failed")
        runtime.abort(job)
        fault = EngineError("internal", "The worker failed on this request.", retryable=True)
        job.stream.end(_failed(job, fault))


def _generate(runtime: Runtime, job: RunningJob) -> None:
    """Submit and wait for the terminal output."""
    stream, claimed = job.stream, job.stream.claimed
    submitted_at = time.monotonic()
    stream.add_started()
    runtime.publisher.register(job.request_id, stream)
    runtime.publisher.flush(stream)
    try:
        runtime.engine.submit(_request(job, submitted_at))
    except EngineError as refusal:
        stream.end(_failed(job, refusal))
        return
    if not stream.finished.wait(max(0.0, claimed.remaining_s) + DEADLINE_GRACE_S):
        log.error("engine_unresponsive")
        runtime.abort(job)
        silence = EngineError("engine_unresponsive", "The engine didn't answer.", retryable=True)
        stream.end(_failed(job, silence))
    metrics.STAGE_SECONDS.labels("generate").observe(time.monotonic() - submitted_at)
    if stream.first_token_at is not None:
        metrics.STAGE_SECONDS.labels("first_token").observe(stream.first_token_at - submitted_at)


def _failed(job: RunningJob, error: EngineError) -> TokenOutput:
    return TokenOutput(request_id=job.request_id, finish_reason=FinishReason.ERROR, error=error)


def _request(job: RunningJob, now: float) -> EngineRequest:
    claimed = job.stream.claimed
    return EngineRequest(
        request_id=job.request_id,
        model=claimed.model,
        prompt_token_ids=unpack_token_ids(claimed.prompt_token_ids),
        sampling=_sampling(claimed),
        generated_token_ids=_generated(job),
        cache_salt=claimed.tenant_id.hex,
        deadline=now + claimed.remaining_s,
        grammar=claimed.grammar,
    )


def _generated(job: RunningJob) -> tuple[tuple[int, ...], ...]:
    """What earlier attempts produced of the one choice."""
    token_ids = tuple(job.stream.token_ids)
    return (token_ids,) if token_ids else ()


def _sampling(claimed: Claimed) -> SamplingParams:
    """The stored object has SamplingParams' field names; JSON made keys strings, tuples lists."""
    fields = dict(claimed.sampling)
    fields["logit_bias"] = {int(k): v for k, v in (fields.get("logit_bias") or {}).items()}
    for name in ("stop", "stop_token_ids"):
        fields[name] = tuple(fields.get(name) or ())
    return SamplingParams(**{"max_tokens": claimed.max_output_tokens, **fields})


def _conclude(runtime: Runtime, job: RunningJob) -> None:
    """Commit the end of the attempt, then tell readers and billing."""
    terminal = job.stream.terminal
    assert terminal is not None
    match terminal.finish_reason:
        case FinishReason.ERROR:
            assert terminal.error is not None
            _fail(runtime, job, terminal.error)
        case FinishReason.ABORT:
            _conclude_abort(runtime, job, terminal)
        case FinishReason.DEADLINE if not job.stream.token_ids:
            late = DeadlineExceeded().message
            _finish(runtime, job, End(DEADLINE_BEFORE_START, terminal.finish_reason, 0, late))
        case FinishReason.STOP | FinishReason.LENGTH | FinishReason.DEADLINE as reason:
            _finish(runtime, job, End(_ENDINGS[reason], reason, terminal.cached_tokens))


def _conclude_abort(runtime: Runtime, job: RunningJob, terminal: TokenOutput) -> None:
    """Somebody cancelled the job, or this process is going down."""
    who = _commit(runtime, lambda c: attempts.cancel_asked_by(c, job.stream.job_id))
    if who is None:
        _give_back(runtime, job, reason="worker_drained", delay_s=0.0, counts_as_failure=False)
        return
    _finish(runtime, job, End(cancelled_by(who), FinishReason.ABORT, terminal.cached_tokens))


def _fail(runtime: Runtime, job: RunningJob, error: EngineError) -> None:
    """Another attempt if the error may pass and attempts are left, else the end."""
    claimed = job.stream.claimed
    service_error = to_service_error(error)
    metrics.STAGE_ERRORS.labels("generate", service_error.code).inc()
    log.error("engine_error", code=error.code, retryable=error.retryable)
    if error.retryable and claimed.fail_count + 1 < claimed.max_fails:
        delay = ERROR_BACKOFF_S * 2**claimed.fail_count
        _give_back(runtime, job, reason="engine_error", delay_s=delay, counts_as_failure=True)
        return
    ending = replace(ENGINE_ERROR, is_retryable=error.retryable)
    _finish(runtime, job, End(ending, FinishReason.ERROR, 0, service_error.message))


@dataclass(frozen=True, slots=True)
class End:
    """How an attempt ended the job."""

    ending: Ending
    finish_reason: FinishReason
    cached_tokens: int
    error_message: str | None = None


def _finish(runtime: Runtime, job: RunningJob, end: End) -> None:
    stream = job.stream
    record = _finish_record(job, end)
    with metrics.STAGE_SECONDS.labels("finish").time():
        is_done = _commit(runtime, lambda connection: attempts.finish(connection, record))
    if not is_done:
        _count_attempt(stream.claimed, "fenced")
        log.warning("finish_refused")
        return
    stream.add_marker()
    runtime.publisher.flush(stream)
    enqueue_settle(stream.job_id)
    _count_attempt(stream.claimed, record.attempt_outcome)
    metrics.OUTPUT_TOKENS.labels(stream.claimed.model, stream.claimed.service_tier).inc(
        stream.attempt_tokens
    )
    log.info("job_finished", status=end.ending.status.value, reason=end.ending.reason)


def _finish_record(job: RunningJob, end: End) -> Finish:
    stream, claimed = job.stream, job.stream.claimed
    num_tokens = len(stream.token_ids)
    ending = end.ending
    if num_tokens == 0 and ending.payer == Payer.TENANT:
        ending = replace(ending, payer=Payer.NOBODY)
    is_charged = ending.payer == Payer.TENANT
    cost = cost_micros(
        input_tokens=claimed.input_tokens,
        cached_tokens=end.cached_tokens,
        output_tokens=num_tokens,
        prices=claimed.prices,
    )
    return Finish(
        job_id=claimed.job_id,
        attempt=claimed.attempt,
        worker_id=job.worker_id,
        ending=ending,
        attempt_outcome=_OUTCOMES.get(end.finish_reason, "ok"),
        cached_tokens=end.cached_tokens,
        output_tokens=num_tokens,
        attempt_tokens=stream.attempt_tokens,
        cost_micros=cost if is_charged else 0,
        output=_output(stream, end),
        last_seq=stream.marker_seq(),
        event_log=stream.event_log(),
        error_message=end.error_message,
    )


def _output(stream: JobStream, end: End) -> list[dict[str, object]]:
    """The job object's `output`; a failed job has none."""
    if end.ending.status is JobStatus.FAILED:
        return []
    reason = _WIRE_REASONS.get(end.finish_reason)
    return [{"index": 0, "text": stream.text, "finish_reason": reason}]


def _give_back(
    runtime: Runtime, job: RunningJob, *, reason: str, delay_s: float, counts_as_failure: bool
) -> None:
    stream, claimed = job.stream, job.stream.claimed
    back = Requeue(
        job_id=claimed.job_id,
        attempt=claimed.attempt,
        worker_id=job.worker_id,
        reason=reason,
        delay_s=delay_s,
        counts_as_failure=counts_as_failure,
        checkpoint=stream.checkpoint(),
        attempt_tokens=stream.attempt_tokens,
    )
    _commit(runtime, lambda connection: attempts.requeue(connection, back))
    _count_attempt(claimed, "error" if counts_as_failure else "drained")
    log.info("job_given_back", reason=reason)


def _commit(runtime: Runtime, write: Callable[[DictConnection], T]) -> T | None:
    """Run a fenced write; on a lost connection again, as it is safe to repeat."""
    give_up_at = time.monotonic() + COMMIT_PATIENCE_S
    while True:
        try:
            with runtime.pool.connection() as connection:
                return write(connection)
        except psycopg.OperationalError as error:
            log.warning("commit_retried", error=type(error).__name__)
            if time.monotonic() > give_up_at:
                return None
            time.sleep(COMMIT_RETRY_S)


def _count_attempt(claimed: Claimed, outcome: str) -> None:
    metrics.ATTEMPTS.labels(claimed.model, claimed.service_tier, outcome).inc()
