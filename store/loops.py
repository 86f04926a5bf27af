"""Threads that do one thing over and over on a Postgres connection of their own.

A loop survives any outage: it reconnects with backoff and jitter and never ends by an error.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import structlog

from store.faults import is_outage
from store.pools import DictConnection, connect
from tasks.vital import vital

FIRST_BACKOFF_S = 0.2
MAX_BACKOFF_S = 5.0

# A step that takes long is followed by a pause of twice as long, so that a loop over a large
# backlog never keeps Postgres busy all the time. But no longer than this: one that took a time-out
# must not keep what it waits for waiting.
PAUSE_PER_STEP_TIME = 2.0
MAX_PAUSE_S = 3.0

# Returns True if there is more to do at once.
Step = Callable[[DictConnection], bool]

log = structlog.get_logger(__name__)


class PostgresLoop(threading.Thread):
    """Calls `step` every `interval_s`, or sooner when it says there is more or `wake` is called."""

    def __init__(self, name: str, url: str, step: Step, *, interval_s: float) -> None:
        super().__init__(name=name, daemon=True)
        self.num_failures = 0  # in a row
        self._url = url
        self._step = step
        self._interval_s = interval_s
        self._wake = threading.Event()
        self._stopped = threading.Event()

    def wake(self) -> None:
        """Don't wait for the interval to end. From any thread."""
        self._wake.set()

    def stop(self, timeout_s: float = 5.0) -> None:
        """End after the current step; wait for it."""
        self._stopped.set()
        self._wake.set()
        if self.is_alive():
            self.join(timeout_s)

    def run(self) -> None:
        """The thread's body: steps over one connection, a new one after each failure."""
        with vital(self.name):
            while not self._stopped.is_set():
                self._connect_and_serve()

    def _connect_and_serve(self) -> None:
        try:
            name = f"millrace-{self.name}"
            with connect(self._url, application_name=name, plans_once=True) as connection:
                self._serve(connection)
        except Exception as error:  # the thread's boundary: a fault in a step must not end the loop
            if is_outage(error):
                log.warning("loop_lost_postgres", loop=self.name, error=str(error).strip())
            else:
                log.exception("loop_step_failed", loop=self.name)
            self._back_off()

    def _serve(self, connection: DictConnection) -> None:
        while not self._stopped.is_set():
            self._wake.clear()
            began = time.monotonic()
            has_more = self._step(connection)
            self.num_failures = 0
            if not has_more:
                pause_s = (time.monotonic() - began) * PAUSE_PER_STEP_TIME
                self._wake.wait(max(self._interval_s, min(pause_s, MAX_PAUSE_S)))

    def _back_off(self) -> None:
        limit_s = min(FIRST_BACKOFF_S * 2**self.num_failures, MAX_BACKOFF_S)
        self.num_failures = min(self.num_failures + 1, 10)
        self._stopped.wait(limit_s * random.uniform(0.5, 1.0))
