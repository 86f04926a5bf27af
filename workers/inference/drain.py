"""The bounded end of a worker: what finishes in time finishes here, the rest goes back.

A given-back job costs no failure and keeps its tokens; another worker continues its stream. What
can't be given back in time goes back with the lease (`store.leases.give_up`).
"""

from __future__ import annotations

import threading
import time

import psycopg
import structlog

from store import leases
from workers.inference.runtime import Runtime

log = structlog.get_logger(__name__)

POLL_S = 0.05
# After `drain_s`, for the engine to end what still runs, and for the commits; within the grace of
# whoever kills a worker that doesn't end (`WorkerSettings.stop_grace_s`).
END_S = 6.0


class Drain:
    """Begun by whatever says first that the worker is to stop, then goes on by itself."""

    def __init__(self, runtime: Runtime, *, end_s: float = END_S) -> None:
        self._runtime = runtime
        self._end_s = end_s
        self._is_urgent = False
        self._thread = threading.Thread(target=self._run, name="drain", daemon=True)

    @property
    def has_begun(self) -> bool:
        """Whether the worker is stopping."""
        return self._runtime.draining.is_set()

    def begin(self, *, is_urgent: bool = False) -> None:
        """Claim nothing more. Never blocks, so signal handlers may call it; twice is once.

        is_urgent: give back at once what runs. It may follow a beginning that was not.
        """
        self._is_urgent |= is_urgent
        if not self.has_begun:
            self._runtime.draining.set()
            self._thread.start()

    def wait(self) -> None:
        """Until every attempt of this process is over, whoever claimed it, or given up."""
        self.begin()
        self._thread.join()

    def _run(self) -> None:
        runtime = self._runtime
        give_up_at = time.monotonic() + runtime.settings.drain_s
        self._announce()
        while runtime.num_attempts and not self._is_urgent and time.monotonic() < give_up_at:
            time.sleep(POLL_S)
        self._end_attempts()
        if runtime.num_attempts:
            log.error("attempts_abandoned", num_attempts=runtime.num_attempts)
            runtime.lose_all()

    def _announce(self) -> None:
        try:
            with self._runtime.pool.connection() as connection:
                leases.set_draining(connection, self._runtime.worker_id)
        except psycopg.Error:
            log.warning("drain_not_announced")

    def _end_attempts(self) -> None:
        """Again and again: a claimed job may still be on its way to the engine."""
        end_at = time.monotonic() + self._end_s
        while self._runtime.num_attempts and time.monotonic() < end_at:
            for job in self._runtime.running():
                self._runtime.abort(job)
            time.sleep(POLL_S)
