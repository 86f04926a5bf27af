"""The heartbeat: renews the lease while the engine moves, checkpoints, compares with the table.

A hung kernel must lose its lease, so a beat is sent only if the engine lives (liveness.py). While
Postgres is away generation and streams go on: Redis and Postgres refuse every write of an attempt
that has been replaced, and the first beat after the outage tells which have been.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterable, Sequence

import psycopg
import structlog

from store import leases
from store.apart import apart
from store.attempts import RunningCheckpoint, save_checkpoints
from store.faults import reason
from store.leases import HeldJob
from store.pools import DictConnection
from tasks.ids import uuid7
from tasks.vital import end_worker, vital
from workers.inference import metrics
from workers.inference.engine.protocol import Phase
from workers.inference.liveness import Liveness
from workers.inference.runtime import RunningJob, Runtime

log = structlog.get_logger(__name__)

_Due = tuple[RunningJob, RunningCheckpoint]

TICK_S = 1.0
# Without Postgres for this long the worker gives its jobs up: somebody else has them by now. For
# as long one that has just loaded its models waits to begin.
ABANDON_S = 60.0
# A job that is held here by Postgres's word, and that no thread has had for this long, goes to the
# reaper: its claim's answer was lost, or its handler failed. Longer than opening a stream takes.
ORPHAN_S = 15.0


class Heartbeat:
    """One thread a worker process."""

    def __init__(
        self,
        runtime: Runtime,
        *,
        tick_s: float = TICK_S,
        abandon_s: float = ABANDON_S,
        orphan_s: float = ORPHAN_S,
    ) -> None:
        self._runtime = runtime
        self._tick_s = tick_s
        self._abandon_s = abandon_s
        self._orphan_s = orphan_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._liveness = Liveness()
        self._renewed_at = time.monotonic()
        self._beat_due = 0.0
        self._orphans: dict[HeldJob, float] = {}  # held by nobody here -> first seen

    def start(self) -> None:
        """Register the lease, then beat. Waits for Postgres: to start anew would load the models
        anew. Raises psycopg.Error if it stays away.
        """
        give_up_at = time.monotonic() + self._abandon_s
        while not self._is_registered(is_last_try=time.monotonic() >= give_up_at):
            self._stop.wait(self._tick_s)
        self._thread.start()

    def stop(self) -> None:
        """End the thread and give the lease up, with whatever it still holds."""
        self._stop.set()
        self._thread.join(timeout=10)
        try:
            with self._runtime.pool.connection() as connection:
                held = leases.give_up(connection, self._runtime.worker_id)
        except psycopg.Error:
            log.warning("lease_not_given_up")
            return
        for job_id in held:
            log.warning("job_given_back_unfinished", job_id=job_id.hex)

    def _is_registered(self, *, is_last_try: bool) -> bool:
        try:
            with self._runtime.pool.connection() as connection:
                self._register(connection, time.monotonic())
        except psycopg.OperationalError as error:
            if is_last_try:
                raise
            log.warning("lease_not_registered", error=type(error).__name__)
            self._runtime.worker_id = uuid7()  # the row may be there: its commit got no answer
            return False
        return True

    def _run(self) -> None:
        with vital("heartbeat"):
            while not self._stop.wait(self._tick_s):
                self._end_without_engine()
                self._try_tick()
                self._abandon_if_late(time.monotonic())

    def _end_without_engine(self) -> None:
        """An engine that gave up is not started again: only a new process has one."""
        is_stopped = self._runtime.engine.progress().phase is Phase.STOPPED
        if is_stopped and not self._runtime.draining.is_set():
            self._runtime.has_lost_engine = True
            end_worker("engine", "It failed too often, and has stopped.")

    def _try_tick(self) -> None:
        try:
            self._tick(time.monotonic())
        except psycopg.Error as error:
            metrics.BEATS.labels("unreachable").inc()
            log.warning("heartbeat_failed", error=type(error).__name__)
        except Exception:
            log.exception("heartbeat_failed")

    def _tick(self, now: float) -> None:
        running = self._runtime.running()
        metrics.RUNNING.set(len(running))
        if not running and now < self._beat_due:
            return
        is_alive = self._liveness.is_alive(self._runtime.engine.progress(), now)
        with self._runtime.pool.connection() as connection:
            # Before the checkpoint, whose failure must not cost the lease.
            if is_alive:
                self._beat(connection, running, now)
            else:
                metrics.BEATS.labels("withheld").inc()
                log.warning("beat_withheld")
            _checkpoint(connection, running)

    def _beat(self, connection: DictConnection, running: Sequence[RunningJob], now: float) -> None:
        if leases.beat(connection, self._runtime.worker_id, num_running=len(running)):
            metrics.BEATS.labels("sent").inc()
            self._renewed_at = now
            self._beat_due = now + leases.BEAT_INTERVAL_S
            self._compare(connection, running, now)
            self._runtime.publisher.trusted_until = now + leases.LEASE_S
            return
        metrics.BEATS.labels("lost").inc()
        log.error("lease_lost", worker_id=self._runtime.worker_id.hex)
        self._runtime.lose_all()
        self._runtime.worker_id = uuid7()
        self._register(connection, now)

    def _compare(
        self, connection: DictConnection, running: Sequence[RunningJob], now: float
    ) -> None:
        """Hear what the table says: jobs taken from us, jobs to cancel, jobs nobody here runs.

        `running` was listed before the table is read, so a job in it that the table doesn't give us
        is lost, unless its end is being committed.
        """
        held = {
            (job.job_id, job.attempt): job
            for job in leases.held_jobs(connection, self._runtime.worker_id)
        }
        for job in running:
            found = held.pop((job.stream.job_id, job.stream.claimed.attempt), None)
            if found is None and not job.is_concluding:
                log.warning("job_taken", job_id=job.stream.job_id.hex)
                job.stream.fence()
                self._runtime.abort(job)
            elif found is not None and found.is_cancelled:
                self._runtime.abort(job)
        self._disown_orphans(connection, held.values(), now)

    def _disown_orphans(
        self, connection: DictConnection, unknown: Iterable[HeldJob], now: float
    ) -> None:
        """Leave to the reaper what is held under this lease but has not shown up here."""
        self._orphans = {job: self._orphans.get(job, now) for job in unknown}
        for job, since in self._orphans.items():
            if now - since > self._orphan_s and leases.disown(
                connection, self._runtime.worker_id, job
            ):
                log.error("orphan_disowned", job_id=job.job_id.hex, attempt=job.attempt)

    def _abandon_if_late(self, now: float) -> None:
        if now - self._renewed_at > self._abandon_s and self._runtime.running():
            log.error("jobs_abandoned", worker_id=self._runtime.worker_id.hex)
            self._runtime.lose_all()
            # The lease must end: a beat after the outage would hold jobs that nobody runs.
            self._runtime.worker_id = uuid7()

    def _register(self, connection: DictConnection, now: float) -> None:
        engine, settings = self._runtime.engine, self._runtime.settings
        self._renewed_at = now
        leases.register(
            connection,
            leases.Lease(
                worker_id=self._runtime.worker_id,
                hostname=socket.gethostname(),
                pid=os.getpid(),
                pool=settings.pool,
                device=settings.device,
                models=sorted(engine.models),
                refused=engine.refused,
                slots=engine.max_num_seqs,
            ),
        )
        self._runtime.publisher.trusted_until = now + leases.LEASE_S
        if self._runtime.draining.is_set():
            leases.set_draining(connection, self._runtime.worker_id)


def _checkpoint(connection: DictConnection, running: Sequence[RunningJob]) -> None:
    """One that can't be stored keeps no other from it. It is tried again with more output."""
    due = [(job, item) for job in running if (item := job.stream.due_checkpoint())]

    def save(some: Sequence[_Due]) -> None:
        save_checkpoints(connection, [item for _, item in some])
        for job, item in some:
            job.stream.note_checkpoint(item.checkpoint.seq)

    apart(due, save, _report_not_stored, turn_s=TICK_S)


def _report_not_stored(due: _Due, error: psycopg.Error) -> None:
    log.error("checkpoint_not_stored", job_id=due[1].job_id.hex, error=reason(error))
