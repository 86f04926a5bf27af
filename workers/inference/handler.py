"""Handles `inference.generate`, and looks for work itself when no tickets come.

Loaded by `-I workers.inference.handler`; importing it also connects the worker's life cycle.
"""

from __future__ import annotations

import threading
import time
from uuid import UUID

import psycopg
import structlog

from store.attempts import Claimed, claim_any, claim_ticket
from tasks.app import app
from tasks.inference import GENERATE
from tasks.stream import StreamWriter
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
    worker_id = runtime.worker_id
    claimed = _claim_ticket(runtime, worker_id, UUID(hex=job_id))
    if claimed is not None:
        run_job(runtime, StreamWriter(runtime.streams), claimed, worker_id)


def _claim_ticket(runtime: Runtime, worker_id: UUID, job_id: UUID) -> Claimed | None:
    if runtime.draining.is_set():
        metrics.TICKETS.labels("refused").inc()
        return None
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

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="idle-look", daemon=True)
        self._attempts: list[threading.Thread] = []

    def start(self) -> None:
        """Start looking."""
        self._thread.start()

    def stop(self) -> None:
        """Claim nothing more."""
        self._stop.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._stop.wait(IDLE_LOOK_S):
            try:
                while self._may_look() and self._look():
                    pass
            except psycopg.Error as error:
                log.warning("idle_look_failed", error=type(error).__name__)

    def _may_look(self) -> bool:
        runtime = self._runtime
        is_quiet = time.monotonic() - runtime.last_ticket_at > IDLE_LOOK_S
        # While Redis is slow, claimed jobs are not yet among the running for a second or more.
        self._attempts = [thread for thread in self._attempts if thread.is_alive()]
        num_opening = sum(runtime.of_thread(t.ident or 0) is None for t in self._attempts)
        has_room = len(runtime.running()) + num_opening < runtime.engine.max_num_seqs
        return is_quiet and has_room and not runtime.draining.is_set() and not self._stop.is_set()

    def _look(self) -> bool:
        runtime = self._runtime
        worker_id = runtime.worker_id
        with runtime.pool.connection() as connection:
            claimed = claim_any(connection, worker_id, runtime.settings.pool)
        if claimed is None:
            return False
        log.info("claimed_without_ticket", job_id=claimed.job_id.hex)
        thread = threading.Thread(
            target=run_job,
            args=(runtime, StreamWriter(runtime.streams), claimed, worker_id),
            name=f"job-{claimed.job_id.hex}",
            daemon=True,
        )
        self._attempts.append(thread)
        thread.start()
        return True


app.steps["worker"].add(bootstrap.DrainAtClose)
bootstrap.connect_signals(IdleLook)
