"""The heartbeat: renews the lease while the engine moves, writes checkpoints, hears cancels.

A hung kernel must lose its lease, so a beat is sent only if the engine's counter moved or it is
idle. A worker that can't reach Postgres stops publishing before its lease ends by itself.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Sequence

import psycopg
import structlog

from store import leases
from store.attempts import save_checkpoints
from store.leases import HeldJob
from store.pools import DictConnection
from tasks.ids import uuid7
from workers.inference import metrics
from workers.inference.engine.protocol import Phase, Progress
from workers.inference.runtime import RunningJob, Runtime

log = structlog.get_logger(__name__)

CHECKPOINT_INTERVAL_S = 1.0
FENCE_MARGIN_S = 1.5  # stop this long before the lease can have ended
# A job that is held here by Postgres's word, and that no thread has had for this long, goes to the
# reaper: its claim's answer was lost, or its handler failed. Longer than opening a stream takes.
ORPHAN_S = 15.0
# A declared phase may go on this long without a step.
PHASE_LIMIT_S = {Phase.LOADING: 600.0, Phase.COMPILING: 180.0}


class Heartbeat:
    """One thread a worker process."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._last_progress: Progress | None = None
        self._phase_since = time.monotonic()
        self._renewed_at = time.monotonic()  # when the last successful beat was sent
        self._beat_due = 0.0
        self._orphans: dict[HeldJob, float] = {}  # held by nobody here -> first seen

    def start(self) -> None:
        """Register the lease, then beat. Raises psycopg.Error if Postgres is away."""
        with self._runtime.pool.connection() as connection:
            self._register(connection)
        self._thread.start()

    def stop(self) -> None:
        """End the thread and give the lease up. The worker holds no jobs any more."""
        self._stop.set()
        self._thread.join(timeout=10)
        try:
            with self._runtime.pool.connection() as connection:
                leases.remove(connection, self._runtime.worker_id)
        except psycopg.Error:
            log.warning("lease_not_removed")

    def _run(self) -> None:
        while not self._stop.wait(CHECKPOINT_INTERVAL_S):
            try:
                self._tick()
            except psycopg.Error as error:
                metrics.BEATS.labels("unreachable").inc()
                log.warning("heartbeat_failed", error=type(error).__name__)
            except Exception:
                log.exception("heartbeat_failed")
            self._fence_if_late()

    def _tick(self) -> None:
        now = time.monotonic()
        running = self._runtime.running()
        metrics.RUNNING.set(len(running))
        if not running and now < self._beat_due:
            return
        is_alive = self._is_alive(now)
        with self._runtime.pool.connection() as connection:
            # Before the checkpoint, whose failure must not cost the lease.
            if is_alive:
                self._beat(connection, now, len(running))
                self._look_at_held(connection, now)
            else:
                metrics.BEATS.labels("withheld").inc()
                log.warning("beat_withheld")
            self._checkpoint(connection, running)

    def _checkpoint(self, connection: DictConnection, running: Sequence[RunningJob]) -> None:
        due = [(job, item) for job in running if (item := job.stream.due_checkpoint())]
        save_checkpoints(connection, [item for _, item in due])
        for job, item in due:
            job.stream.note_checkpoint(item.checkpoint.seq)

    def _beat(self, connection: DictConnection, now: float, num_running: int) -> None:
        if leases.beat(connection, self._runtime.worker_id, num_running=num_running):
            metrics.BEATS.labels("sent").inc()
            self._renewed_at = now
            self._beat_due = now + leases.BEAT_INTERVAL_S
            return
        metrics.BEATS.labels("fenced").inc()
        log.error("lease_lost", worker_id=self._runtime.worker_id.hex)
        self._runtime.lose_all()
        self._runtime.worker_id = uuid7()
        self._register(connection)

    def _look_at_held(self, connection: DictConnection, now: float) -> None:
        """Hear cancellations, and give up what is held under this lease but not run here."""
        orphans = {}
        for held in leases.held_jobs(connection, self._runtime.worker_id):
            job = self._runtime.find(held.job_id)
            if job is None or job.stream.claimed.attempt != held.attempt:
                orphans[held] = self._orphans.get(held, now)
            elif held.is_cancelled:
                self._runtime.abort(job)
        self._orphans = orphans
        for held, since in orphans.items():
            if now - since > ORPHAN_S and leases.disown(connection, self._runtime.worker_id, held):
                log.error("orphan_disowned", job_id=held.job_id.hex, attempt=held.attempt)

    def _is_alive(self, now: float) -> bool:
        """Whether the engine moved since the last look, is idle, or is in a phase that may last."""
        progress = self._runtime.engine.progress()
        last, self._last_progress = self._last_progress, progress
        if last is None or progress.phase != last.phase:
            self._phase_since = now
        if last is None or progress.is_idle or progress.counter != last.counter:
            return True
        return now - self._phase_since < PHASE_LIMIT_S.get(progress.phase, 0.0)

    def _fence_if_late(self) -> None:
        late = time.monotonic() - self._renewed_at > leases.LEASE_S - FENCE_MARGIN_S
        if late and self._runtime.running():
            log.error("self_fenced", worker_id=self._runtime.worker_id.hex)
            self._runtime.lose_all()
            # The lease must end: renewed in its last moments, it would hold jobs nobody runs.
            self._runtime.worker_id = uuid7()

    def _register(self, connection: DictConnection) -> None:
        engine, settings = self._runtime.engine, self._runtime.settings
        self._renewed_at = time.monotonic()
        leases.register(
            connection,
            leases.Lease(
                worker_id=self._runtime.worker_id,
                hostname=socket.gethostname(),
                pid=os.getpid(),
                pool=settings.pool,
                device=settings.device,
                models=sorted(engine.models),
                slots=engine.max_num_seqs,
            ),
        )
        if self._runtime.draining.is_set():
            leases.set_draining(connection, self._runtime.worker_id)
