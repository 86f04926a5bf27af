"""One attempt from claim to commit: open the stream, generate, finish or give back.

Runs on a handler thread, which waits while the engine's thread works. Every stage has a bound.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar
from uuid import UUID

import psycopg
import structlog

from store import attempts
from store.attempts import Claimed, Requeue
from store.pools import DictConnection
from tasks.billing import enqueue_settle
from tasks.errors import DeadlineExceeded
from tasks.jobs import (
    COMPLETED,
    DEADLINE_AFTER_START,
    DEADLINE_BEFORE_START,
    ENGINE_ERROR,
    MAX_OUTPUT_TOKENS,
    cancelled_by,
)
from tasks.stream import StreamWriter
from workers.inference import metrics
from workers.inference.engine.errors import EngineError
from workers.inference.engine.protocol import FinishReason, TokenOutput
from workers.inference.errors import to_service_error
from workers.inference.request import engine_requests
from workers.inference.result import End, finish_record
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
        for request_id in job.request_ids:
            runtime.publisher.forget(request_id)
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
    """Submit and wait until the output is over."""
    stream, claimed = job.stream, job.stream.claimed
    submitted_at = time.monotonic()
    give_up_at = submitted_at + max(0.0, claimed.remaining_s) + DEADLINE_GRACE_S
    stream.add_started()
    runtime.publisher.register(job.request_id, stream)
    runtime.publisher.flush(stream)
    if not _submit(runtime, job, submitted_at, give_up_at):
        return
    if not stream.finished.wait(max(0.0, give_up_at - time.monotonic())):
        log.error("engine_unresponsive")
        silence = EngineError("engine_unresponsive", "The engine didn't answer.", retryable=True)
        stream.end(_failed(job, silence))
    if stream.is_generating:  # one choice's failure ended all, or the job is another attempt's
        runtime.abort(job)
    metrics.STAGE_SECONDS.labels("generate").observe(time.monotonic() - submitted_at)
    if stream.first_token_at is not None:
        metrics.STAGE_SECONDS.labels("first_token").observe(stream.first_token_at - submitted_at)


def _submit(runtime: Runtime, job: RunningJob, now: float, give_up_at: float) -> bool:
    """One prompt after another, each once there is room for it. False: one was refused."""
    stream = job.stream
    for number, request in enumerate(engine_requests(job, now)):
        has_room = stream.room.acquire(timeout=max(0.0, give_up_at - time.monotonic()))
        if not has_room or stream.finished.is_set():
            break
        if number:
            runtime.publisher.register(request.request_id, stream, number)
        try:
            runtime.engine.submit(request)
        except EngineError as refusal:
            stream.end(_failed(job, refusal))
            if number:
                runtime.abort(job)
            return False
        if job.is_aborted:  # before the engine knew of the request
            runtime.abort(job)
    return True


def _failed(job: RunningJob, error: EngineError) -> TokenOutput:
    return TokenOutput(request_id=job.request_id, finish_reason=FinishReason.ERROR, error=error)


def _conclude(runtime: Runtime, job: RunningJob) -> None:
    """Commit the end of the attempt, then tell readers and billing."""
    terminal = job.stream.terminal
    assert terminal is not None
    match terminal.finish_reason:
        case FinishReason.ERROR:
            assert terminal.error is not None
            _fail(runtime, job, terminal.error)
        case FinishReason.ABORT:
            _conclude_abort(runtime, job)
        case FinishReason.DEADLINE if not job.stream.has_produced:
            late = End(DEADLINE_BEFORE_START, terminal.finish_reason, 0, DeadlineExceeded())
            _finish(runtime, job, late)
        case FinishReason.STOP | FinishReason.LENGTH | FinishReason.DEADLINE as reason:
            _finish(runtime, job, End(_ENDINGS[reason], reason, job.stream.cached_tokens))


def _conclude_abort(runtime: Runtime, job: RunningJob) -> None:
    """Somebody cancelled the job, or this process is going down."""
    who = _commit(runtime, lambda c: attempts.cancel_asked_by(c, job.stream.job_id))
    if who is None:
        _give_back(runtime, job, reason="worker_drained", delay_s=0.0, counts_as_failure=False)
        return
    job.stream.add_held_back()
    _finish(runtime, job, End(cancelled_by(who), FinishReason.ABORT, job.stream.cached_tokens))


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
    _finish(runtime, job, End(ending, FinishReason.ERROR, 0, service_error))


def _finish(runtime: Runtime, job: RunningJob, end: End) -> None:
    stream = job.stream
    record = finish_record(stream, job.worker_id, end)
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
