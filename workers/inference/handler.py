"""Handles `inference.generate`, and looks for work itself when no tickets come.

Loaded by `-I workers.inference.handler`; importing it also connects the worker's life cycle.
"""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from uuid import UUID

import psycopg
import structlog

from store.attempts import Claimed
from store.claiming import claim_any, claim_ticket
from tasks.app import app
from tasks.inference import GENERATE
from tasks.stream import StreamWriter
from tasks.vital import vital
from workers.inference import bootstrap, metrics
from workers.inference.run_job import run_job
from workers.inference.runtime import Runtime

log = structlog.get_logger(__name__)

# Without tickets for this long, hints may be lost: look into the table.
IDLE_LOOK_S = 2.0


@app.task(name=GENERATE, ignore_result=True)
def generate(job_id: str) -> None:
    """Take a ticket: claim the best job it stands for and run it. May run twice for one job."""
    runtime = bootstrap.runtime()
    runtime.last_ticket_at = time.monotonic()
    if not runtime.begin_attempt():
        metrics.TICKETS.labels("refused").inc()
        return
    try:
        worker_id = runtime.worker_id
        claimed = _claim_ticket(runtime, worker_id, UUID(hex=job_id))
        if claimed is not None:
            run_job(runtime, StreamWriter(runtime.streams), claimed, worker_id)
    finally:
        runtime.end_attempt()


def _claim_ticket(runtime: Runtime, worker_id: UUID, job_id: UUID) -> Claimed | None:
    try:
        with metrics.STAGE_SECONDS.labels("claim").time(), runtime.pool.connection() as connection:
            claimed = claim_ticket(connection, worker_id, job_id)
    except psycopg.Error as error:
        # The row stays queued, and the re-hinter or the idle look comes back to it; or the claim
        # did commit and only its answer is lost, and the heartbeat finds a job that nobody runs.
        metrics.STAGE_ERRORS.labels("claim", "service_unavailable").inc()
        log.warning("claim_failed", error=type(error).__name__)
        return None
    metrics.TICKETS.labels("claimed" if claimed else "surplus").inc()
    return claimed


class IdleLook:
    """One thread: while slots are free and no ticket comes, claims from the table directly."""

    def __init__(self, runtime: Runtime, *, interval_s: float = IDLE_LOOK_S) -> None:
        self._runtime = runtime
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="idle-look", daemon=True)

    def start(self) -> None:
        """Start looking."""
        self._thread.start()

    def stop(self) -> None:
        """Claim nothing more."""
        self._stop.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        with vital("idle-look"):
            while not self._stop.wait(self._interval_s):
                self._look_while_there_are_jobs()

    def _look_while_there_are_jobs(self) -> None:
        try:
            while self._may_look() and self._look():
                pass
        except psycopg.Error as error:
            log.warning("idle_look_failed", error=type(error).__name__)
        except Exception:  # the thread's boundary: one job's fault must not end all looks
            log.exception("idle_look_failed")

    def _may_look(self) -> bool:
        runtime = self._runtime
        is_quiet = time.monotonic() - runtime.last_ticket_at > self._interval_s
        # Not the running ones: while Redis is slow, a claimed job is none for a second or more.
        has_room = runtime.num_attempts < runtime.engine.max_num_seqs
        return is_quiet and has_room and not self._stop.is_set()

    def _look(self) -> bool:
        """Whether there was a job, which now runs on a thread of its own."""
        runtime = self._runtime
        with ExitStack() as attempt:
            if not runtime.begin_attempt():
                return False
            attempt.callback(runtime.end_attempt)
            worker_id = runtime.worker_id
            with runtime.pool.connection() as connection:
                claimed = claim_any(connection, worker_id, runtime.settings.pool)
            if claimed is None:
                return False
            log.info("claimed_without_ticket", job_id=claimed.job_id.hex)
            name = f"job-{claimed.job_id.hex}"
            arguments = (claimed, worker_id)
            threading.Thread(target=self._attempt, args=arguments, name=name, daemon=True).start()
            attempt.pop_all()
        return True

    def _attempt(self, claimed: Claimed, worker_id: UUID) -> None:
        """The thread's body. A stop waits for it as for those of Celery's pool."""
        try:
            run_job(self._runtime, StreamWriter(self._runtime.streams), claimed, worker_id)
        finally:
            self._runtime.end_attempt()


app.steps["worker"].add(bootstrap.LifeCycle)
bootstrap.connect_signals(IdleLook)
